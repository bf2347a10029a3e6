package org.espalier.online;

import java.util.ArrayList;
import java.util.EnumMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TreeSet;
import java.util.stream.Collectors;

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

  private static final int WIDTH = 900;
  private static final int HEIGHT = 230;
  private static final int TOP = 30;
  private static final int LEFT = 56;
  private static final int BOTTOM = 26;

  /** Colours that people with colour blindness tell apart (Okabe and Ito). */
  private static final Map<Event.Kind, String> COLOURS =
      Map.of(
          Event.Kind.NON_FINITE, "#000000",
          Event.Kind.REFUSED, "#000000",
          Event.Kind.NORM_CLIPPED, "#e69f00",
          Event.Kind.NORM_SKIPPED, "#e69f00",
          Event.Kind.LOSS_SPIKE, "#d55e00",
          Event.Kind.ROLLBACK, "#cc79a7",
          Event.Kind.DRIFT, "#0072b2",
          Event.Kind.QUARANTINE_FULL, "#999999");

  private record Point(long seen, Map<String, Double> metrics) {}

  private record Published(long seen, long storeVersion, long version) {}

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
    List<String> series =
        List.of(group + "_fading", group + "_window", group).stream()
            .filter(s -> points.stream().anyMatch(p -> p.metrics().containsKey(s)))
            .toList();
    double low = Double.POSITIVE_INFINITY;
    double high = Double.NEGATIVE_INFINITY;
    for (Point p : points) {
      for (String s : series) {
        double v = p.metrics().getOrDefault(s, Double.NaN);
        if (Double.isFinite(v)) {
          low = Math.min(low, v);
          high = Math.max(high, v);
        }
      }
    }
    if (!(low <= high)) {
      return;
    }
    if (high == low) {
      high = low + 1;
    }
    double from = points.get(0).seen();
    double span = Math.max(1, points.get(points.size() - 1).seen() - from);
    page.append("<h2>").append(escape(group.replace('_', ' '))).append("</h2>\n");
    page.append(
        String.format(
            Locale.ROOT,
            "<div class=\"c\"><svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s\">%n",
            WIDTH,
            HEIGHT + BOTTOM,
            escape(group)));
    for (int i = 0; i <= 4; i++) {
      double y = HEIGHT - 10 - i * (HEIGHT - 10 - TOP) / 4.0;
      page.append(
          String.format(
              Locale.ROOT,
              "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/><text x=\"%d\""
                  + " y=\"%.1f\" font-size=\"12\" text-anchor=\"end\" fill=\"#555\">%s</text>%n",
              LEFT,
              WIDTH,
              y,
              y,
              LEFT - 6,
              y + 4,
              number(low + i * (high - low) / 4)));
      double x = LEFT + i * (WIDTH - LEFT - 10) / 4.0;
      page.append(
          String.format(
              Locale.ROOT,
              "<text x=\"%.1f\" y=\"%d\" font-size=\"12\" text-anchor=\"%s\" fill=\"#555\">%,.0f"
                  + "</text>%n",
              x,
              HEIGHT + 16,
              i == 4 ? "end" : "middle",
              from + i * span / 4));
    }
    for (Event e : events) {
      double x = LEFT + (e.examples() - from) / span * (WIDTH - LEFT - 10);
      if (x >= LEFT && x <= WIDTH) {
        page.append(
            String.format(
                Locale.ROOT,
                "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\" stroke=\"%s\" opacity=\".45\">"
                    + "<title>%s at example %d: %s</title></line>%n",
                x,
                x,
                TOP,
                HEIGHT - 10,
                COLOURS.get(e.kind()),
                name(e.kind()),
                e.examples(),
                escape(e.evidence())));
      }
    }
    double last = Double.NEGATIVE_INFINITY;
    for (Published v : published) {
      double x = LEFT + (v.seen() - from) / span * (WIDTH - LEFT - 10);
      if (x < last + 2) {
        continue; // it would lie on the one before
      }
      last = x;
      page.append(
          String.format(
              Locale.ROOT,
              "<path d=\"M%.1f %d l-4 7 h8 z\" fill=\"#009e73\"><title>version %d of the store"
                  + "</title></path>%n",
              x,
              HEIGHT - 10,
              v.storeVersion()));
    }
    String[] styles = {
      "stroke=\"#0072b2\" stroke-width=\"1.8\"",
      "stroke=\"#56b4e9\"",
      "stroke=\"#888\" stroke-dasharray=\"4 3\""
    };
    for (int k = 0; k < series.size(); k++) {
      String name = series.get(k);
      StringBuilder path = new StringBuilder();
      for (Point p : points) {
        double v = p.metrics().getOrDefault(name, Double.NaN);
        if (Double.isFinite(v)) {
          path.append(
              String.format(
                  Locale.ROOT,
                  "%s%.1f %.1f",
                  path.isEmpty() ? "M" : "L",
                  LEFT + (p.seen() - from) / span * (WIDTH - LEFT - 10),
                  HEIGHT - 10 - (v - low) / (high - low) * (HEIGHT - 10 - TOP)));
        }
      }
      page.append("<path d=\"" + path + "\" fill=\"none\" " + styles[k] + "/>\n");
      page.append(
          String.format(
              Locale.ROOT,
              "<path d=\"M%d 8 h22\" fill=\"none\" %s/><text x=\"%d\" y=\"12\" font-size=\"12\""
                  + " fill=\"#333\">%s</text>%n",
              LEFT + 10 + 150 * k,
              styles[k],
              LEFT + 37 + 150 * k,
              escape(
                  name.endsWith("_fading")
                      ? "fading"
                      : name.endsWith("_window") ? "window" : "since the beginning")));
    }
    page.append("</svg></div>\n");
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

  /** In as many digits as fit beside the axis. */
  private static String number(double value) {
    boolean plain = value == 0 || Math.abs(value) >= 0.01 && Math.abs(value) < 1000;
    return String.format(Locale.ROOT, plain ? "%.3f" : "%.1e", value);
  }

  private static String name(Event.Kind kind) {
    return kind.name().toLowerCase(Locale.ROOT).replace('_', ' ');
  }

  private static String escape(String text) {
    return text.replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
        .replace("\"", "&quot;");
  }
}
