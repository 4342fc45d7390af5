"""BinaryCrossEntropy: a teacher's probabilities of classes that do not exclude each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fxopt.errors import PassError
from fxopt.passes.distill.losses.entries import check_positive, counted, mean_of, of_one_shape


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Compare outputs of sigmoids: the mean of -p log q - (1 - p) log(1 - q), teacher p, student q, in nats.

    - `weight`: times the mean, which is over all outputs of what is valid.
    - `logits`: the values are what goes into the sigmoids; else they are probabilities, 0 to 1.

    Values [batch, ...] of one shape. The loss is least, the mean entropy of p, where both are equal. Raises PassError
    for a weight that is not positive, two shapes, and probabilities out of their range.
    """

    weight: float = 1.0
    logits: bool = True

    def __post_init__(self) -> None:
        check_positive(self, weight=self.weight)

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None, valid: Tensor | None) -> Tensor:
        """Return the weighted mean, a tensor of no dimensions; labels are not read."""
        found, expected = (counted(self, value, valid) for value in of_one_shape(self, student, teacher))
        if self.logits:
            expected = expected.sigmoid()
        else:
            self._check(student=found, teacher=expected)
            found = found.logit(eps=torch.finfo(found.dtype).eps)  # as far from 0 and 1 as float32 can tell
        losses = functional.binary_cross_entropy_with_logits(found, expected, reduction="none")
        return self.weight * mean_of(losses)

    def _check(self, **values: Tensor) -> None:
        for name, value in values.items():
            least, most = (float(end) for end in torch.aminmax(value.detach())) if value.numel() else (0, 0)
            if least < 0 or most > 1:
                raise PassError(
                    f"BinaryCrossEntropy(logits=False): the {name}'s values go from {least:.4g} to {most:.4g}, no "
                    "probabilities; use logits=True or tap the sigmoid."
                )
