// Threads that work on one image together, for as long as one call lasts: none is left behind for a fork to lose.

#include "team.hpp"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if defined(SEGCRF_X86)
#include <immintrin.h>
#endif

namespace segcrf {

FlushDenormals::FlushDenormals() {
#if defined(SEGCRF_X86)
    saved = _mm_getcsr();
    _mm_setcsr(saved | 0x8040u);
#endif
}
FlushDenormals::~FlushDenormals() {
#if defined(SEGCRF_X86)
    _mm_setcsr(saved);
#endif
}

struct Team {
    std::mutex guard;
    std::condition_variable begin, end;
    std::atomic<unsigned> round{0};
    std::atomic<int> busy{0};
    int spins = 0;
    bool over = false;
    void (*work)(void*, int) = nullptr;
    void* context = nullptr;
    std::exception_ptr problem;  // the first of a round
    std::vector<std::thread> others;

    // Phases are fractions of a millisecond: for about 50 microseconds looking again is cheaper than sleeping.
    template <class F> void wait(std::condition_variable& changed, F ready) {
        for (int i = 0; i < spins; ++i) {
            if (ready()) return;
#if defined(SEGCRF_X86)
            _mm_pause();
#endif
        }
        std::unique_lock<std::mutex> lock(guard);
        changed.wait(lock, ready);
    }
    void attempt(int thread) {
        try {
            work(context, thread);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(guard);
            if (!problem) problem = std::current_exception();
        }
    }
    void serve(int thread) {
        const FlushDenormals flush;
        for (unsigned seen = 0;; ++seen) {
            wait(begin, [&] { return round.load() != seen; });
            if (over) return;
            attempt(thread);
            // Under the lock, so that the owner does not miss it between looking and sleeping
            const std::lock_guard<std::mutex> lock(guard);
            if (--busy == 0) end.notify_one();
        }
    }
    void announce() {
        {
            const std::lock_guard<std::mutex> lock(guard);
            ++round;
        }
        begin.notify_all();
    }
};

TeamOwner::TeamOwner(int num_threads) : team(new Team) {
    const unsigned cores = std::thread::hardware_concurrency();
    team->spins = cores == 0 || static_cast<unsigned>(num_threads) <= cores ? 1000 : 0;
    try {
        team->others.reserve(static_cast<std::size_t>(num_threads));
        for (int t = 1; t < num_threads; ++t) team->others.emplace_back([this, t] { team->serve(t); });
    } catch (const std::exception&) {
        // No more threads or no memory for them: fewer give the same result
    }
}

TeamOwner::~TeamOwner() {
    team->over = true;
    team->announce();
    for (std::thread& thread : team->others) thread.join();
    delete team;
}

int TeamOwner::size() const { return 1 + static_cast<int>(team->others.size()); }

void together(Team& team, void (*work)(void*, int), void* context) {
    team.work = work;
    team.context = context;
    team.problem = nullptr;
    team.busy = static_cast<int>(team.others.size());
    team.announce();
    team.attempt(0);
    team.wait(team.end, [&] { return team.busy.load() == 0; });
    if (team.problem) std::rethrow_exception(team.problem);
}

}  // namespace segcrf
