package org.espalier.compress.onnx;

import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import org.junit.jupiter.api.Test;

class Int8SaturationTest {
  @Test
  void onlyProcessorsWithoutVnniSaturate() {
    String start = "processor\t: 0\nmodel name\t: x\nflags\t\t: fpu sse2 ssse3 avx2 ";
    assertTrue(Int8Saturation.of(start + "fma\n"));
    assertTrue(Int8Saturation.of(start + "avx512f avx512bw avx512_vbmi\n"));
    assertFalse(Int8Saturation.of(start + "avx512f avx512_vnni\nbugs\t: ssse3\n"));
    assertFalse(Int8Saturation.of(start + "avx_vnni\n"));
    // ARM lists «Features», and has no such instruction.
    assertFalse(Int8Saturation.of("processor\t: 0\nFeatures\t: fp asimd\n"));
  }
}
