package org.espalier;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.List;
import org.junit.jupiter.api.Test;

class CounterRandomTest {
  /** The known answers of Random123 for Philox 4x32 with 10 rounds. */
  @Test
  void philoxGivesTheKnownAnswers() {
    int[] block = new int[4];
    CounterRandom.philox(0, 0, 0, block);
    assertEquals(
        List.of(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8),
        List.of(block[0], block[1], block[2], block[3]));
    CounterRandom.philox(-1, -1, -1, block);
    assertEquals(
        List.of(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd),
        List.of(block[0], block[1], block[2], block[3]));
    CounterRandom.philox(0x299f31d0a4093822L, 0x85a308d3243f6a88L, 0x0370734413198a2eL, block);
    assertEquals(
        List.of(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1),
        List.of(block[0], block[1], block[2], block[3]));
  }
}
