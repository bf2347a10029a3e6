package org.espalier.device;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.util.List;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.Pointer;
import org.junit.jupiter.api.Test;

class TensorTest {
  @Test
  void viewsPointersBuffersAndAddressesWithoutACopy() {
    try (FloatPointer floats = new FloatPointer(10)) {
      Tensor view = Tensor.of(new FloatPointer(floats).position(2), DType.F32, 2, 4);
      assertEquals(floats.address() + 8, view.address());
      assertEquals(8, view.elements());
      assertEquals(4, view.dimension(-1));
      Tensor raw = Tensor.ofAddress(floats.address(), 40, DType.BF16, 20);
      assertEquals(floats.address(), raw.address());
      assertEquals(floats.address() + 6, raw.slice(3, 5).address());
    }
    ByteBuffer bytes = ByteBuffer.allocateDirect(64).order(ByteOrder.nativeOrder());
    bytes.position(16);
    Tensor fromBytes = Tensor.of(bytes, DType.F32, 12);
    FloatBuffer floats = bytes.slice().order(ByteOrder.nativeOrder()).asFloatBuffer();
    floats.position(3);
    Tensor fromFloats = Tensor.of(floats, 9);
    assertEquals(fromBytes.address() + 12, fromFloats.address());
    new FloatPointer(fromFloats.pointer()).put(0, 42f);
    assertEquals(42f, bytes.getFloat(16 + 12));
  }

  @Test
  void refusesMemoryThatIsTooSmallOrCanMove() {
    ByteBuffer direct = ByteBuffer.allocateDirect(15);
    String message =
        assertThrows(IllegalArgumentException.class, () -> Tensor.of(direct, DType.F32, 2, 2))
            .getMessage();
    assertEquals("the memory holds 15 bytes, F32[2, 2] needs 16", message);
    assertThrows(
        IllegalArgumentException.class, () -> Tensor.of(ByteBuffer.allocate(16), DType.F32, 4));
    assertThrows(IllegalArgumentException.class, () -> Tensor.ofAddress(0, 16, DType.F32, 4));
    assertThrows(IllegalArgumentException.class, () -> Tensor.ofAddress(64, 16, DType.F32, -4));
    assertThrows(
        ArithmeticException.class,
        () -> Tensor.ofAddress(64, Long.MAX_VALUE, DType.F32, 1L << 40, 1L << 40));
  }

  /** A tensor's own pointer counts bytes, as it says. */
  @Test
  void aPointerOfATensorIsAsLargeAsTheTensor() {
    try (OwnedTensor tensor = OwnedTensor.allocate(DType.F32, 16)) {
      assertEquals(16, Tensor.of(tensor.pointer(), DType.F32, 4, 4).elements());
      assertEquals(32, Tensor.of(tensor.pointer(), DType.BF16, 32).elements());
      for (Pointer own : List.of(tensor.pointer(), new BytePointer(tensor.pointer()))) {
        assertEquals(
            "the memory holds 64 bytes, F32[17] needs 68",
            assertThrows(IllegalArgumentException.class, () -> Tensor.of(own, DType.F32, 17))
                .getMessage());
      }
      Pointer part = tensor.slice(4, 8).pointer();
      assertThrows(IllegalArgumentException.class, () -> Tensor.of(part, DType.F32, 9));
      Pointer within = part.position(8);
      assertEquals(tensor.address() + 24, Tensor.of(within, DType.F32, 6).address());
      assertThrows(IllegalArgumentException.class, () -> Tensor.of(within, DType.F32, 7));
    }
  }

  @Test
  void ownedTensorsAreZeroedAlignedAndRefuseUseAfterClose() {
    for (long n : new long[] {0, 1, 1000, (4L << 20) / 4, 3_000_001}) {
      OwnedTensor tensor = OwnedTensor.allocate(DType.F32, n);
      assertEquals(0, tensor.address() % 64);
      float[] values = new float[(int) n];
      new FloatPointer(tensor.pointer()).get(values, 0, values.length);
      assertArrayEquals(new float[(int) n], values);
      tensor.close();
      tensor.close();
      assertThrows(IllegalStateException.class, tensor::pointer);
    }
  }

  @Test
  void viewsOfClosedMemoryRefuseUse() {
    OwnedTensor owner = OwnedTensor.allocate(DType.F32, 4, 4);
    Tensor slice = owner.slice(4, 8).slice(2, 2);
    owner.close();
    assertEquals(
        "a tensor of 64 bytes is closed",
        assertThrows(IllegalStateException.class, slice::pointer).getMessage());
    FloatPointer floats = new FloatPointer(4);
    Tensor view = Tensor.of(floats, DType.F32, 4);
    floats.close();
    assertEquals(
        "the memory of F32[4] is closed",
        assertThrows(IllegalStateException.class, view::requireOpen).getMessage());
    assertThrows(IllegalStateException.class, () -> view.slice(0, 1));
    for (FloatPointer none : new FloatPointer[] {floats, new FloatPointer()}) {
      assertThrows(IllegalArgumentException.class, () -> Tensor.of(none, DType.F32, 4));
      assertEquals(0, Tensor.of(none, DType.F32, 0, 4).elements());
    }
  }

  @Test
  void knowsWhatCannotBeWritten() {
    ByteBuffer bytes = ByteBuffer.allocateDirect(16).order(ByteOrder.nativeOrder());
    assertTrue(Tensor.of(bytes, DType.F32, 4).slice(0, 2).isWritable());
    Tensor fixed = Tensor.of(bytes.asReadOnlyBuffer(), DType.F32, 4);
    assertFalse(fixed.isWritable());
    assertFalse(fixed.slice(0, 2).isWritable());
    assertEquals(
        "out F32[4] is read-only memory, of a mapped file or a read-only buffer",
        assertThrows(IllegalArgumentException.class, () -> fixed.requireWritable("out"))
            .getMessage());
  }

  /** What Java makes where nobody says a byte order. */
  @Test
  void floatsOfAnotherByteOrderAreRefused() {
    FloatBuffer floats = ByteBuffer.allocateDirect(16).asFloatBuffer();
    String message =
        assertThrows(IllegalArgumentException.class, () -> Tensor.of(floats, 4)).getMessage();
    assertTrue(message.startsWith("the buffer's floats are BIG_ENDIAN"), message);
  }

  @Test
  void anAxisThatThereIsNotIsNamed() {
    try (OwnedTensor tensor = OwnedTensor.allocate(DType.F32, 2, 3)) {
      for (int axis : new int[] {2, -3}) {
        assertEquals(
            "axis " + axis + " of F32[2, 3]",
            assertThrows(IndexOutOfBoundsException.class, () -> tensor.dimension(axis))
                .getMessage());
      }
    }
  }

  @Test
  void cudaSaysWhyItIsAbsent() {
    if (!Cuda.isAvailable()) {
      UnsupportedOperationException e =
          assertThrows(UnsupportedOperationException.class, Cuda::requireAvailable);
      assertTrue(e.getMessage().length() > "CUDA is not available: ".length(), e.getMessage());
      assertEquals(0, Cuda.deviceCount());
    } else {
      assertTrue(Cuda.deviceCount() > 0);
    }
  }
}
