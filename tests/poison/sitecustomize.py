"""Real poison for the tests: with this folder in PYTHONPATH, Python itself loads it into every process of a job.

A photograph whose top left pixels have one of these colours does in one stage what a broken decoder, a broken kernel or
a broken driver would do: a segmentation fault, an endless loop, memory without end. The pipeline knows nothing of it.
"""

import importlib.abc
import importlib.util
import sys
import time

DEEDS = ("crash", "hang", "grow")
STAGES = ("decode", "score", "refine")
PAINT = {
    (stage, deed): (200 + 20 * s, 10 + 20 * d, 77) for s, stage in enumerate(STAGES) for d, deed in enumerate(DEEDS)
}
"""Colour (R, G, B) of the top left 24 x 24 pixels of an image that does the deed in the stage."""

SLOW = (240, 130, 200)
"""The same of an image that takes SLOW_S to decode, and nothing else: a job that is met at work on any machine."""

SLOW_S = 4.0

_WHERE = {
    "segcore.images.decoding": "_upright_rgb",
    "segcore.predictor": "Predictor.score",
    "segcore.crf.dense_crf": "refine_scores",
}


def do(deed: str) -> None:
    """What kills, hangs or grows."""
    import ctypes

    if deed == "crash":
        ctypes.string_at(0)
    elif deed == "hang":
        while True:
            time.sleep(60)
    else:
        kept = []
        while True:
            kept.append(bytearray(b"x") * 2**25)
            time.sleep(0.02)


def _tasted(image, stage: str) -> None:
    found = image[4:20, 4:20].reshape(-1, 3).mean(axis=0)
    if stage == "decode" and abs(found - SLOW).max() < 6:
        time.sleep(SLOW_S)
    for (where, deed), colour in PAINT.items():
        if where == stage and abs(found - colour).max() < 6:
            do(deed)


def _poison(module) -> None:
    """Put the poison into a module of the project that has just been loaded."""
    if module.__name__ == "segcore.images.decoding":
        upright = module._upright_rgb

        def poisoned(*arguments):
            photograph = upright(*arguments)
            _tasted(photograph.image, "decode")
            return photograph

        module._upright_rgb = poisoned
    elif module.__name__ == "segcore.predictor":
        score = module.Predictor.score

        def scored(self, pixels, *arguments, **options):
            for image in pixels:
                _tasted(image, "score")
            return score(self, pixels, *arguments, **options)

        module.Predictor.score = scored  # Whichever scorer the model has
    else:
        refine = module.refine_scores

        def refined(image, *arguments, **options):
            _tasted(image, "refine")
            return refine(image, *arguments, **options)

        module.refine_scores = refined


class _Poisoner(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in _WHERE:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                load = spec.loader.exec_module

                def exec_module(module, load=load):
                    load(module)
                    _poison(module)

                spec.loader.exec_module = exec_module
                return spec
        return None


if __name__ == "sitecustomize":
    sys.meta_path.insert(0, _Poisoner())
