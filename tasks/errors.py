"""What a person sees when a job cannot run: one sentence that names the culprit and the remedy."""

from segcore import extras


class JobError(ValueError):
    """The job cannot run, or has ended short of its promise; the message is the whole story for the person."""


class InterruptedJobError(JobError):
    """The job has ended short of its promise for a reason that may pass: a node was lost, storage did not answer."""


def require_packages(what: str, extra: str, *packages: str) -> None:
    """Raise JobError unless these packages are here. what: what needs them. extra: what installs them all."""
    for package in packages:
        if not extras.is_here(package):
            raise JobError(extras.sentence(package, what, extra))


def missing_package(error: ModuleNotFoundError) -> str | None:
    """The sentence for a package that a light installation leaves out; None for any other module."""
    package = (error.name or "").partition(".")[0]
    return extras.sentence(package) if package in extras.EXTRAS else None
