"""The protocols of the paper, for whoever has their images and pre-trained weights; see benchmarks/README.md."""
