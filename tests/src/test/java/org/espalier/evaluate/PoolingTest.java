package org.espalier.evaluate;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import org.espalier.InputException;
import org.junit.jupiter.api.Test;

/** A text of four rows, of which the first is of another text. */
class PoolingTest {
  private static final float[] ROWS = {9, 9, 1, 2, 3, 4, 5, 8, 7, 6};

  private static float[] pooled(String name, long... mask) {
    float[] out = new float[2];
    Pooling.parse(name).pool(ROWS, 2, mask, 2, out);
    return out;
  }

  @Test
  void goesByTheMask() {
    assertArrayEquals(new float[] {4, 5}, pooled("mean", 1, 1, 1, 1));
    assertArrayEquals(new float[] {2, 3}, pooled("mean", 1, 1, 0, 0));
    assertArrayEquals(new float[] {1, 2}, pooled("cls", 1, 1, 0, 0));
    assertArrayEquals(new float[] {7, 6}, pooled("last", 1, 1, 1, 1));
    assertArrayEquals(new float[] {3, 4}, pooled("last", 1, 1, 0, 0));
    assertArrayEquals(new float[] {5, 8}, pooled("LAST", 0, 1, 1, 0));
    assertArrayEquals(new float[] {1, 2}, pooled("last", 0, 0, 0, 0));
    for (Pooling pooling : Pooling.values()) {
      assertArrayEquals(new float[2], pooled(pooling.toString()), pooling + " of nothing");
    }
  }

  @Test
  void hasNoOthers() {
    InputException e = assertThrows(InputException.class, () -> Pooling.parse("max"));
    assertEquals("unknown pooling 'max': use mean, cls or last", e.getMessage());
  }
}
