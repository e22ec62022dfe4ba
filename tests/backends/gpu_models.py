"""Models that need a GPU: they take its memory, or keep it busy."""

from __future__ import annotations

from time import perf_counter

from tests.toys import InStages, NumberResponse

HELD_BYTES = 2 << 30
ROWS_THAT_FIT = 24


class TakesMemory(InStages):
    """Takes a part of the GPU's free memory for each row: fewer than 25 rows fit."""

    def load(self):
        import torch

        torch.cuda.empty_cache()
        self.bytes_of_a_row = torch.cuda.mem_get_info()[0] // ROWS_THAT_FIT

    def size(self, prepared):
        return 1

    def infer(self, prepared):
        import torch

        held = []  # as a network holds what its layers have made, also after an error
        for _ in prepared:
            held.append(torch.empty(self.bytes_of_a_row, dtype=torch.uint8, device="cuda"))
        return [2 * row.value for row in prepared]


class TakesMemoryInOneCall(TakesMemory):
    """The same, without stages."""

    def batch_predict(self, requests):
        return self.respond(requests, self.infer(requests))


class Multiplies(InStages):
    """Holds 2 GiB of a GPU and multiplies matrices on it; its answers say where."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.seconds = seconds

    def load(self):
        import torch

        self.held = torch.zeros(HELD_BYTES, dtype=torch.uint8, device="cuda")
        self.matrix = torch.eye(4096, device="cuda")
        self.multiply()

    def multiply(self):
        import torch

        for _ in range(20):
            product = self.matrix @ self.matrix
        torch.cuda.synchronize()
        return product

    def infer(self, prepared):
        import torch

        until = perf_counter() + self.seconds
        product = self.multiply()
        while perf_counter() < until:
            product = self.multiply()
        found = torch.tensor([row.value for row in prepared], device="cuda") * 2 * product[0, 0]
        return [(value, str(found.device)) for value in found.tolist()]

    def respond(self, requests, outputs):
        return [
            NumberResponse(request_id=r.request_id, model_name="m", value=value, note=place)
            for r, (value, place) in zip(requests, outputs, strict=True)
        ]
