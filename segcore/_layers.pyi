"""Kernels of `segcore/models/layers_cpu`: addresses of tensors in, results in place. Called by `cpu_training.py`."""

Sizes = tuple[int, int, int, int, int, int, int, int, int, int]

def name() -> str: ...
def convolve(sizes: Sizes, x: int, weights: int, y: int, threads: int) -> None: ...
def convolve_gradient(sizes: Sizes, dy: int, weights: int, dx: int, threads: int) -> None: ...
def weight_gradient(sizes: Sizes, x: int, dy: int, dw: int, threads: int) -> None: ...
def statistics(x: int, rows: int, channels: int, sums: int, squares: int, threads: int) -> None: ...
def normalise(x: int, y: int, rows: int, channels: int, scale: int, shift: int, bound: float, threads: int) -> None: ...
def gradient_sums(
    x: int,
    dy: int,
    rows: int,
    channels: int,
    scale: int,
    shift: int,
    bound: float,
    sums: int,
    products: int,
    threads: int,
) -> None: ...
def normalise_gradient(
    x: int,
    dy: int,
    dx: int,
    rows: int,
    channels: int,
    scale: int,
    shift: int,
    bound: float,
    a: int,
    b: int,
    c: int,
    threads: int,
) -> None: ...
