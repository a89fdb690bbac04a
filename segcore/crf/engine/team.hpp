// The threads of one call. Nothing here is inline: engine.inl is compiled for several processors, this once.
#pragma once

#include "engine.hpp"

namespace segcrf {

// Denormal numbers are a hundred times slower and mean nothing here.
struct FlushDenormals {
    unsigned saved = 0;
    FlushDenormals();
    ~FlushDenormals();
    FlushDenormals(const FlushDenormals&) = delete;
    FlushDenormals& operator=(const FlushDenormals&) = delete;
};

// `num_threads` threads with that of the caller; fewer where the system has no more.
struct TeamOwner {
    Team* team;
    explicit TeamOwner(int num_threads);
    ~TeamOwner();
    TeamOwner(const TeamOwner&) = delete;
    TeamOwner& operator=(const TeamOwner&) = delete;
    int size() const;
};

}  // namespace segcrf
