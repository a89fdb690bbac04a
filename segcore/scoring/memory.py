"""What running out of memory looks like, on a device and on the host; torch need not be loaded to ask."""

_WORDS = (
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator",  # What torch raises on a CPU is a plain RuntimeError
    "std::bad_alloc",
)


class DeviceShortError(RuntimeError):
    """The device has less memory than it had: something else holds it, and no image is to blame."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation has failed: NumPy's and Python's, torch's on a device, torch's on the host."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
