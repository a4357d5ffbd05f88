"""Lightning: a callback that accelerates a module where its fit starts."""

from __future__ import annotations

from typing import Any

import fastrnn

try:
    from lightning.pytorch.callbacks import Callback
except ModuleNotFoundError:  # the same under its former name
    from pytorch_lightning.callbacks import Callback

__all__ = ["Accelerate"]


class Accelerate(Callback):
    """Call :func:`fastrnn.accelerate` on the module at the start of fit.

    It runs after ``configure_model`` and after the module moved to its device, so that layers are
    left alone where fastrnn has no kernel. Optimizers and checkpoints hold the same Parameters.

    Attributes:
        report: a :class:`fastrnn.Report` of what was replaced and what was left.

    Example::

        >>> accelerate = Accelerate()
        >>> Trainer(callbacks=[accelerate]).fit(module)
        >>> print(accelerate.report)
        replaced encoder by fastrnn.LSTM
    """

    def __init__(self) -> None:
        self.report = fastrnn.Report()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.report = fastrnn.Report()
        fastrnn.accelerate(pl_module, report=self.report)
