"""A small convolutional network as an ExportedProgram (net.pt2) and as a state_dict (net.pt)."""

import torch
from torch import nn


class Net(nn.Module):
    """image FP32[batch,3,32,32] -> scores FP32[batch,classes]."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.head = nn.Linear(16, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(torch.relu(self.conv(image)).mean((2, 3)))
        return scores


if __name__ == "__main__":
    net = Net().eval()
    dynamic = {"image": {0: torch.export.Dim("batch")}}
    program = torch.export.export(net, (torch.randn(2, 3, 32, 32),), dynamic_shapes=dynamic)
    torch.export.save(program, "net.pt2")
    torch.save(net.state_dict(), "net.pt")
    print("edgeserve convert net.pt2 --calibrate random")
    print("edgeserve convert net.pt --model-class pytorch:Net --shape image=1,3,32,32")
