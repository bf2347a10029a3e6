package org.espalier.torch;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.device.DType;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;

class TensorViewTest {
  @BeforeAll
  static void load() {
    Libtorch.load();
  }

  @Test
  void aKernelWritesIntoTorchMemory() {
    try (PointerScope scope = new PointerScope()) {
      Tensor tensor = AbstractTensor.create(new float[] {1, 2, 3, 4, 5, 6}, 2, 3);
      org.espalier.device.Tensor view = TensorView.of(tensor);
      assertEquals("F32[2, 3]", view.toString());
      assertEquals(24, view.pointer().limit());
      new FloatPointer(view.pointer()).put(1, 7);
      assertEquals(26f, tensor.sum().item_float());
    }
  }

  @Test
  void viewsStartAtTheTensorsOwnOffset() {
    try (PointerScope scope = new PointerScope()) {
      Tensor base = AbstractTensor.create(new float[] {1, 2, 3, 4}, 2, 2);
      org.espalier.device.Tensor view = TensorView.of(base.select(0, 1));
      assertEquals(3f, new FloatPointer(view.pointer()).get(0));
      assertEquals(8, view.pointer().limit());
    }
  }

  @Test
  void anEmptyTensorIsAnEmptyView() {
    try (PointerScope scope = new PointerScope()) {
      org.espalier.device.Tensor view = TensorView.of(torch.zeros(0, 3));
      assertEquals("F32[0, 3]", view.toString());
      assertEquals(0, view.pointer().limit());
    }
  }

  @Test
  void whatIsInHostMemoryHasNoStream() {
    try (PointerScope scope = new PointerScope()) {
      TorchDevice device = TorchDevice.of(AbstractTensor.create(1f, 2f));
      assertEquals(TorchDevice.CPU.toString(), device.toString());
      assertEquals(org.espalier.device.Device.cpu(), device.device());
      assertThrows(IllegalArgumentException.class, device::stream);
    }
  }

  @Test
  void halfTypesAreViewedAndOthersRefused() {
    try (PointerScope scope = new PointerScope()) {
      Tensor floats = AbstractTensor.create(1f, 2f);
      assertEquals(DType.BF16, TensorView.of(floats.to(ScalarType.BFloat16)).dtype());
      assertEquals(DType.F16, TensorView.of(floats.to(ScalarType.Half)).dtype());
      refused("Double[2]", floats.to(ScalarType.Double));
      refused("Long[1]", AbstractTensor.create(1L));
    }
  }

  @Test
  void whatIsNoDenseMemoryIsRefused() {
    try (PointerScope scope = new PointerScope()) {
      Tensor tensor = AbstractTensor.create(new float[] {1, 2, 3, 4}, 2, 2);
      refused("strided [1, 2]", tensor.t());
      refused("undefined", new Tensor());
      tensor.close();
      refused("closed", tensor);
    }
  }

  @Test
  void aViewEndsWithItsTensor() {
    org.espalier.device.Tensor view;
    try (PointerScope scope = new PointerScope()) {
      view = TensorView.of(AbstractTensor.create(1f, 2f));
      view.requireOpen();
    }
    assertEquals(
        "the memory of F32[2] is closed",
        assertThrows(IllegalStateException.class, view::pointer).getMessage());
  }

  private static void refused(String part, Tensor tensor) {
    String message =
        assertThrows(IllegalArgumentException.class, () -> TensorView.of(tensor)).getMessage();
    assertTrue(message.contains(part), message);
  }
}
