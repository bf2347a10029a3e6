package org.espalier.online.report;

import java.util.ArrayList;
import java.util.EnumMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TreeSet;
import java.util.stream.Collectors;
import org.espalier.online.Event;

/**
 * What happened in a run, as one HTML file that needs nothing else: metrics over the examples, with
 * the events and the published versions. Not for several threads.
 */
public final class OnlineReport {
  private static final int MOST_POINTS = 800;

  /** Events of a kind; a flood of one must not hide another. */
  private static final int MOST_EVENTS = 500;

  /** Versions that are listed one by one. */
  private static final int MOST_VERSIONS = 200;

  /** Colours that people with colour blindness tell apart (Okabe and Ito). */
  static final Map<Event.Kind, String> COLOURS =
      Map.of(
          Event.Kind.NON_FINITE, "#000000",
          Event.Kind.REFUSED, "#000000",
          Event.Kind.NORM_CLIPPED, "#e69f00",
          Event.Kind.NORM_SKIPPED, "#e69f00",
          Event.Kind.LOSS_SPIKE, "#d55e00",
          Event.Kind.ROLLBACK, "#cc79a7",
          Event.Kind.DRIFT, "#0072b2",
          Event.Kind.QUARANTINE_FULL, "#999999");

  /** Metrics after so many examples. */
  record Point(long seen, Map<String, Double> metrics) {}

  /** A version of the store, published after so many examples. */
  record Published(long seen, long storeVersion, long version) {}

  private final String title;
  private final List<Point> points = new ArrayList<>();
  private final List<Event> events = new ArrayList<>();
  private final List<Published> published = new ArrayList<>();
  private final Map<Event.Kind, Long> counts = new EnumMap<>(Event.Kind.class);
  private long next;
  private long interval = 1;

  public OnlineReport(String title) {
    this.title = title;
  }

  /** Whether a point is wanted now: asking for metrics costs a sort of the window. */
  public boolean wants(long seen) {
    return seen >= next;
  }

  /** Adds the metrics after so many examples. */
  public void add(long seen, Map<String, Double> metrics) {
    points.add(new Point(seen, metrics));
    if (points.size() > MOST_POINTS) { // every second point will do
      for (int i = points.size() - 2; i > 0; i -= 2) {
        points.remove(i);
      }
      interval *= 2;
    }
    next = seen + interval;
  }

  public void add(Event event) {
    if (counts.merge(event.kind(), 1L, Long::sum) <= MOST_EVENTS) {
      events.add(event);
    }
  }

  /** A version of the store was published. */
  public void published(long seen, long storeVersion, long version) {
    published.add(new Published(seen, storeVersion, version));
  }

  /**
   * The page.
   *
   * @param summary lines of a table at the top
   */
  public String html(Map<String, String> summary) {
    StringBuilder page = new StringBuilder();
    page.append("<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">")
        .append("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>")
        .append(escape(title))
        .append("</title>\n<style>body{font:15px/1.45 system-ui,sans-serif;max-width:960px;")
        .append("margin:2em auto;padding:0 1em;color:#222}table{border-collapse:collapse}")
        .append("td,th{padding:.2em .8em .2em 0;text-align:left;vertical-align:top}")
        .append("th{border-bottom:1px solid #999}td.n{text-align:right;white-space:nowrap}")
        .append("td:last-child{overflow-wrap:anywhere}")
        .append(
            ".c{overflow-x:auto}svg{width:100%;min-width:640px;height:auto}h2{margin:1.4em 0"
                + " .3em;font-size:1.1em}")
        .append(".k{display:inline-block;width:.8em;height:.8em;margin-right:.3em}</style>\n<h1>")
        .append(escape(title))
        .append("</h1>\n<table>\n");
    summary.forEach(
        (name, value) ->
            page.append("<tr><td>")
                .append(escape(name))
                .append("</td><td>")
                .append(escape(value))
                .append("</td></tr>\n"));
    page.append("</table>\n");
    TreeSet<String> groups = new TreeSet<>();
    points.forEach(
        p -> p.metrics().keySet().forEach(k -> groups.add(k.replaceAll("_(window|fading)$", ""))));
    groups.forEach(group -> chart(page, group));
    if (!counts.isEmpty()) {
      page.append("<p>");
      counts.forEach(
          (kind, count) ->
              page.append("<span class=\"k\" style=\"background:")
                  .append(COLOURS.get(kind))
                  .append("\"></span>")
                  .append(name(kind))
                  .append(" (")
                  .append(count)
                  .append(") &nbsp; "));
      page.append("</p>\n");
    }
    table(page);
    return page.append("</html>\n").toString();
  }

  private void chart(StringBuilder page, String group) {
    MetricChart chart = new MetricChart(group, points);
    if (!chart.isEmpty()) {
      page.append("<h2>").append(escape(group.replace('_', ' '))).append("</h2>\n");
      page.append("<div class=\"c\">").append(chart.svg(events, published)).append("</div>\n");
    }
  }

  private void table(StringBuilder page) {
    page.append("<h2>Versions of the store</h2>\n<p>");
    if (published.isEmpty()) {
      page.append("none");
    } else if (published.size() > MOST_VERSIONS) {
      Published first = published.get(0);
      Published newest = published.get(published.size() - 1);
      page.append(published.size())
          .append(" from ")
          .append(first.storeVersion())
          .append(" at example ")
          .append(first.seen())
          .append(" to ")
          .append(newest.storeVersion())
          .append(" at example ")
          .append(newest.seen());
    } else {
      page.append(
          published.stream()
              .map(v -> v.storeVersion() + " at example " + v.seen())
              .collect(Collectors.joining("; ")));
    }
    page.append("</p>\n<h2>Events</h2>\n");
    if (events.isEmpty()) {
      page.append("<p>none</p>\n");
      return;
    }
    long all = counts.values().stream().mapToLong(Long::longValue).sum();
    if (all > events.size()) {
      page.append("<p>The first ")
          .append(MOST_EVENTS)
          .append(" of each kind; there were ")
          .append(all)
          .append(".</p>\n");
    }
    page.append("<table><tr><th>example</th><th>step</th><th>what</th><th>evidence</th></tr>\n");
    for (Event e : events) {
      page.append("<tr><td class=\"n\">")
          .append(e.examples())
          .append("</td><td class=\"n\">")
          .append(e.step())
          .append("</td><td>")
          .append(name(e.kind()))
          .append("</td><td>")
          .append(escape(e.evidence()))
          .append("</td></tr>\n");
    }
    page.append("</table>\n");
  }

  /** A kind of events in words. */
  static String name(Event.Kind kind) {
    return kind.name().toLowerCase(Locale.ROOT).replace('_', ' ');
  }

  static String escape(String text) {
    return text.replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
        .replace("\"", "&quot;");
  }
}
