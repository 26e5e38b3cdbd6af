"""The engine that ships with the package: continuous batching in one process, CPU or CUDA."""
