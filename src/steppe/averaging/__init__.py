"""What becomes of the weights over the steps: Lookahead around an optimizer, and averages beside it. Torch alone.

==============================  ===========================================================  ======================
name                            the weights that it gives                                    copies of the weights
==============================  ===========================================================  ======================
:class:`Lookahead`              slow weights that follow k fast steps by a share α           1 (mean, anchor: 2)
:class:`SWAD`                   the mean over a valley of the validation loss                the longer queue + 2
:class:`SWA`                    the mean of all steps                                        1
:class:`EMA`                    an exponential mean of the steps                             1
==============================  ===========================================================  ======================

``Lookahead`` is an optimizer around an optimizer. The averages (:class:`Average`) stand beside any loop::

    average = steppe.SWAD(model)
    for step, batch in enumerate(loader, 1):
        ...
        optimizer.step(closure)
        average.update()
        if step % 100 == 0:
            average.segment(validation_loss(model))     # SWA and EMA do not ask for it
    model.load_state_dict(average.finish())
    steppe.averaging.reestimate_batch_norm(model, loader)

Averaged weights have running statistics of their own: :func:`reestimate_batch_norm` finds them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steppe.lazy import lazy_names

if TYPE_CHECKING:
    from steppe.averaging.average import Average
    from steppe.averaging.batch_norm import reestimate_batch_norm
    from steppe.averaging.lookahead import Lookahead
    from steppe.averaging.running import EMA, SWA
    from steppe.averaging.swad import SWAD

__all__ = ["Lookahead", "SWAD", "SWA", "EMA", "Average", "reestimate_batch_norm"]

__getattr__ = lazy_names(
    __name__,
    {
        "average": ("Average",),
        "batch_norm": ("reestimate_batch_norm",),
        "lookahead": ("Lookahead",),
        "running": ("SWA", "EMA"),
        "swad": ("SWAD",),
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
