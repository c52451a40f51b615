"""placeholder until the real one is merged"""
import math
import torch
class Batches:
    def __init__(self, x, batch_size, seed):
        self.x, self.batch_size, self.seed = x, batch_size, seed
    def __len__(self):
        return math.ceil(len(self.x) / self.batch_size)
    def epoch(self, number, start=0):
        g = torch.Generator().manual_seed((self.seed * 1000003 + number) % 2**63)
        order = torch.randperm(len(self.x), generator=g).to(self.x.device)
        for rows in order.tensor_split(len(self))[start:]:
            yield self.x[rows]
