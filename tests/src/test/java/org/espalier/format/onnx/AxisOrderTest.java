package org.espalier.format.onnx;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.node;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertNull;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.List;
import org.junit.jupiter.api.Test;

class AxisOrderTest {
  private static final NodeProto NONE = node("Transpose", "", List.of("x"), "y");

  private static NodeProto told(long... perm) {
    return node("Transpose", "", List.of("x"), "y", attribute("perm", perm));
  }

  @Test
  void isWhatANodeIsTold() {
    assertArrayEquals(new int[] {2, 0, 1}, AxisOrder.of(told(2, 0, 1)));
    assertArrayEquals(new int[] {2, 0, 1}, AxisOrder.of(told(2, 0, 1), 3));
  }

  @Test
  void allAreTurnedAroundWhereItIsToldNothing() {
    assertNull(AxisOrder.of(NONE));
    assertArrayEquals(new int[] {2, 1, 0}, AxisOrder.of(NONE, 3));
    assertArrayEquals(new int[0], AxisOrder.of(NONE, 0));
  }

  @Test
  void whatIsNoOrderOfItsAxesIsNone() {
    for (NodeProto wrong :
        List.of(told(0, 0), told(0, 2), told(-1, 0), told(1L << 32, 1), told(1, 2))) {
      assertNull(AxisOrder.of(wrong));
      assertNull(AxisOrder.of(wrong, 2));
    }
    assertNull(AxisOrder.of(told(1, 0), 3));
  }
}
