package org.espalier.online.report;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Map;
import org.espalier.online.Event;
import org.junit.jupiter.api.Test;

class OnlineReportTest {
  private static int count(String html, String part) {
    return html.split(part, -1).length - 1;
  }

  /** A run of months: neither its events nor its versions make a page that nobody can open. */
  @Test
  void aFloodOfOneKindHidesNoOther() {
    OnlineReport report = new OnlineReport("a <run>");
    for (int i = 0; i < 100_000; i++) {
      report.add(new Event(Event.Kind.NORM_CLIPPED, i, i, 1, "flood"));
      report.published(i, i + 1, i + 1);
      if (report.wants(i)) {
        report.add(i, Map.of("accuracy", 0.5 + i * 1e-6));
      }
    }
    report.add(new Event(Event.Kind.ROLLBACK, 100_000, 100_000, 1, "the <only> one"));
    String html = report.html(Map.of("store", "a & b"));
    assertTrue(html.contains("a &lt;run&gt;") && html.contains("a &amp; b"), "not escaped");
    assertTrue(html.contains("the &lt;only&gt; one"), "the rollback is missing");
    assertTrue(html.contains("norm clipped (100000)") && html.contains("rollback (1)"), html);
    assertTrue(html.contains("there were 100001"), html);
    assertTrue(html.contains("100000 from 1 at example 0 to 100000 at example 99999"));
    assertTrue(count(html, "of the store</title>") < 500, "too many versions drawn");
    assertTrue(html.length() < 500_000, html.length() + " characters");
  }

  @Test
  void largeAndSmallValuesFitBesideTheAxis() {
    OnlineReport report = new OnlineReport("run");
    report.add(1, Map.of("log_loss", 1e-5));
    report.add(2, Map.of("log_loss", 51267633.0));
    report.add(3, Map.of("log_loss", Double.NaN));
    String html = report.html(Map.of());
    assertTrue(html.contains(">5.1e+07</text>") && html.contains(">1.0e-05</text>"), html);
    assertFalse(html.contains("NaN"), html);
    assertTrue(html.contains("name=\"viewport\""), "phones would show it tiny");
    assertEquals(1, count(html, "<svg"));
  }

  /** The distance is no mean of what was before. */
  @Test
  void theLegendSaysWhatACurveIsOf() {
    OnlineReport report = new OnlineReport("run");
    report.add(1, Map.of("distance", 0.5));
    report.add(2, Map.of("distance", 0.25));
    String html = report.html(Map.of());
    assertTrue(html.contains(">the last batch<"), html);
    assertFalse(html.contains("since the beginning"), html);
  }
}
