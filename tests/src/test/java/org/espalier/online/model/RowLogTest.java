package org.espalier.online.model;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;

import org.junit.jupiter.api.Test;

/** What a copy of any age lacks. */
class RowLogTest {
  @Test
  void aLogKnowsWhatChangedSinceATimeUntilItIsTooMuch() {
    RowLog log = new RowLog(80);
    assertNull(log.since(-1)); // of a copy that never was one
    assertEquals(0, log.since(0).size());
    log.add(new long[] {3, 4});
    log.add(new long[] {5});
    assertEquals(2, log.now());
    assertArrayEquals(new long[] {5}, log.since(1).get(0));
    assertEquals(2, log.since(0).size());
    log.addAll();
    assertNull(log.since(2));
    assertEquals(0, log.since(3).size());
    log.add(new long[] {1, 2, 3, 4, 5, 6});
    log.add(new long[] {1, 2, 3, 4, 5}); // eleven of eighty
    assertNull(log.since(3));
    assertEquals(1, log.since(4).size());
    log.add(new long[11]);
    assertNull(log.since(5));
    assertEquals(0, log.since(6).size());
  }
}
