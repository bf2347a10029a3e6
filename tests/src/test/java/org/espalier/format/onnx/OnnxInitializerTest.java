package org.espalier.format.onnx;

import static org.junit.jupiter.api.Assertions.assertEquals;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.FloatBuffer;
import org.espalier.format.HalfFloats;
import org.junit.jupiter.api.Test;

class OnnxInitializerTest {
  /** Several threads convert parts of a large tensor, of which the last is not whole. */
  @Test
  void largeTensorsOfSixteenBitsAreWidened() {
    float[] values = new float[200_003];
    for (int i = 0; i < values.length; i++) {
      values[i] = i * 1.0009765625f;
    }
    for (DataType half : new DataType[] {DataType.FLOAT16, DataType.BFLOAT16}) {
      OnnxInitializer stored =
          OnnxInitializer.floats("w", half, new long[] {values.length}, values);
      FloatBuffer wide = stored.asFloat32().floats();
      FloatBuffer read = stored.floats();
      assertEquals(values.length, wide.limit());
      assertEquals(values.length, read.limit());
      for (int i = 0; i < values.length; i++) {
        float right =
            half == DataType.FLOAT16
                ? HalfFloats.ofFloat16(HalfFloats.toFloat16(values[i]))
                : HalfFloats.ofBfloat16(HalfFloats.toBfloat16(values[i]));
        assertEquals(right, wide.get(i), half + " " + i);
        assertEquals(right, read.get(i), half + " " + i);
      }
    }
  }
}
