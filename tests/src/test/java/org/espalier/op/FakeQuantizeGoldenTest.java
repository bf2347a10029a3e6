package org.espalier.op;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.Arrays;
import java.util.stream.Stream;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.IntPointer;
import org.espalier.GoldenFiles;
import org.espalier.GoldenFiles.GoldenFile;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.TestFactory;

/** PyTorch's fake_quantize_per_tensor_affine and fake_quantize_per_channel_affine, bit for bit. */
class FakeQuantizeGoldenTest {
  @TestFactory
  Stream<DynamicTest> files() {
    return GoldenFiles.tests("fq_*.safetensors", (file, isa) -> check(file));
  }

  private static void check(GoldenFile file) {
    float[] scales =
        file.hasTensor("scale")
            ? file.floats("scale")
            : new float[] {Float.parseFloat(file.setting("scale"))};
    int[] zeroPoints = new int[scales.length];
    if (file.hasTensor("zero_point")) {
      zeroPoints = file.ints("zero_point");
    } else {
      Arrays.fill(zeroPoints, Integer.parseInt(file.setting("zero_point", "0")));
    }
    FakeQuantize operation =
        FakeQuantize.affine(file.intSetting("quant_min"), file.intSetting("quant_max")).given();
    if (file.hasSetting("axis")) {
      operation = operation.perChannel(file.intSetting("axis"));
    }
    float[] values = file.floats("x");
    long[] shape = file.shape("x");
    try (OwnedTensor x = Numbers.tensor(DType.F32, values, shape);
        OwnedTensor y = OwnedTensor.allocate(DType.F32, shape);
        OwnedTensor gradY = Numbers.tensor(DType.F32, file.floats("grad_y"), shape);
        OwnedTensor gradX = OwnedTensor.allocate(DType.F32, shape);
        BytePointer gate = new BytePointer(Math.max(1, Bits.bytes(values.length)));
        FloatPointer scale = new FloatPointer(scales);
        IntPointer zeroPoint = new IntPointer(zeroPoints)) {
      operation.run(FakeQuantize.Job.fake(x, y, gate, scale, zeroPoint));
      FakeQuantize.backward(gradY, gate, gradX);
      assertSame(file + " y", file.floats("y"), Numbers.read(y));
      assertSame(file + " grad_x", file.floats("grad_x"), Numbers.read(gradX));
    }
  }

  /** Equal bits, but that zeros compare by value: PyTorch leaves -0. */
  private static void assertSame(String what, float[] expected, float[] actual) {
    assertEquals(expected.length, actual.length, what);
    for (int i = 0; i < expected.length; i++) {
      if (expected[i] != 0 || actual[i] != 0) {
        assertEquals(expected[i], actual[i], 0f, what + "[" + i + "]");
      }
    }
  }
}
