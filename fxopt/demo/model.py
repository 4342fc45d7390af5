"""A residual network for [n, 1, 32, 32] images of digits, in the form of He et al. 2015, "Deep Residual Learning"."""

from torch import Tensor, nn


def conv_batch_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Build a convolution without bias, padded to keep the size at stride 1, and its BatchNorm."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv_batch_norm(inputs, outputs, 3, stride)
        self.second = conv_batch_norm(outputs, outputs, 3)
        self.shortcut = nn.Identity() if inputs == outputs else conv_batch_norm(inputs, outputs, 1, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, inputs, h, w] to [n, outputs, h / stride, w / stride]."""
        residual: Tensor = self.second(self.relu(self.first(x)))
        output: Tensor = self.relu(residual + self.shortcut(x))
        return output


class DigitsNet(nn.Module):
    """Ten logits for an image of a digit; 0.31 M parameters, 49 M multiply-accumulates."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_batch_norm(1, 32, 3), nn.ReLU())
        self.blocks = nn.Sequential(Block(32, 32, 1), Block(32, 64, 2), Block(64, 128, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Map images [n, 1, 32, 32], values in [0, 1], to logits [n, 10]."""
        logits: Tensor = self.head(self.pool(self.blocks(self.stem(image))).flatten(1))
        return logits
