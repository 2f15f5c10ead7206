"""The plugin keeps the contract of a method, and stores what the paper says."""

from taps_ssf import Ssf

from taps_registry.testing import MethodTests

SMALL = {"img_size": 32}
SCALES_ONLY = {"shift": False, "norms": "frozen"}


class TestSsf(MethodTests):
    method = Ssf()
    model, arguments = "test_vit", SMALL

    def test_a_layer_takes_a_scale_and_a_shift_for_each_output(self) -> None:
        settings = self.method_settings(norms="frozen")
        model, partition = self.base(settings)
        stored = self.method.least(model, partition, settings)
        sizes = {name: tensor.numel() for name, tensor in self.of_base().items()}
        for layer in partition.layers:
            weight, bias = layer.tensors
            assert stored.factors[weight].params == sizes[bias]
            assert bias in stored.tensors


class TestSsfOnConvolutions(MethodTests):
    method = Ssf()
    settings = SCALES_ONLY
