package org.espalier.online.report;

import java.util.List;
import java.util.Locale;
import org.espalier.online.Event;
import org.espalier.online.report.OnlineReport.Point;
import org.espalier.online.report.OnlineReport.Published;

/** One metric over the examples, fading, over the window and since the beginning, as a drawing for {@link OnlineReport}. */
final class MetricChart {
  private static final int WIDTH = 900;
  private static final int HEIGHT = 230;
  private static final int TOP = 30;
  private static final int LEFT = 56;
  private static final int RIGHT = WIDTH - 10;
  private static final int AXIS = HEIGHT - 10;
  private static final int BOTTOM = 26;

  /** Of the fading mean, that of the window, and that of all. */
  private static final String[] STYLES = {
    "stroke=\"#0072b2\" stroke-width=\"1.8\"",
    "stroke=\"#56b4e9\"",
    "stroke=\"#888\" stroke-dasharray=\"4 3\""
  };

  private final String group;
  private final List<Point> points;
  private final List<String> series;
  private double low = Double.POSITIVE_INFINITY;
  private double high = Double.NEGATIVE_INFINITY;

  /**
   * @param group the metric
   * @param points at least one
   */
  MetricChart(String group, List<Point> points) {
    this.group = group;
    this.points = points;
    series =
        List.of(group + "_fading", group + "_window", group).stream()
            .filter(s -> points.stream().anyMatch(p -> p.metrics().containsKey(s)))
            .toList();
    for (Point p : points) {
      for (String s : series) {
        double v = p.metrics().getOrDefault(s, Double.NaN);
        if (Double.isFinite(v)) {
          low = Math.min(low, v);
          high = Math.max(high, v);
        }
      }
    }
    if (high == low) {
      high = low + 1;
    }
  }

  /** Whether there is no number to draw. */
  boolean isEmpty() {
    return !(low <= high);
  }

  private double from() {
    return points.get(0).seen();
  }

  private double span() {
    return Math.max(1, points.get(points.size() - 1).seen() - from());
  }

  private double x(double seen) {
    return LEFT + (seen - from()) / span() * (RIGHT - LEFT);
  }

  private double y(double value) {
    return AXIS - (value - low) / (high - low) * (AXIS - TOP);
  }

  /** The drawing, with events and versions where they happened. */
  String svg(List<Event> events, List<Published> published) {
    StringBuilder svg = new StringBuilder();
    append(
        svg,
        "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s\">%n",
        WIDTH,
        HEIGHT + BOTTOM,
        OnlineReport.escape(group));
    axes(svg);
    events.forEach(event -> mark(svg, event));
    mark(svg, published);
    for (int k = 0; k < series.size(); k++) {
      line(svg, series.get(k), STYLES[k]);
      legend(svg, k);
    }
    return svg.append("</svg>").toString();
  }

  private static void append(StringBuilder svg, String format, Object... values) {
    svg.append(String.format(Locale.ROOT, format, values));
  }

  private void axes(StringBuilder svg) {
    for (int i = 0; i <= 4; i++) {
      double y = AXIS - i * (AXIS - TOP) / 4.0;
      append(
          svg,
          "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/><text x=\"%d\""
              + " y=\"%.1f\" font-size=\"12\" text-anchor=\"end\" fill=\"#555\">%s</text>%n",
          LEFT,
          WIDTH,
          y,
          y,
          LEFT - 6,
          y + 4,
          number(low + i * (high - low) / 4));
      append(
          svg,
          "<text x=\"%.1f\" y=\"%d\" font-size=\"12\" text-anchor=\"%s\" fill=\"#555\">%,.0f"
              + "</text>%n",
          LEFT + i * (RIGHT - LEFT) / 4.0,
          HEIGHT + 16,
          i == 4 ? "end" : "middle",
          from() + i * span() / 4);
    }
  }

  /** In as many digits as fit beside the axis. */
  private static String number(double value) {
    boolean plain = value == 0 || Math.abs(value) >= 0.01 && Math.abs(value) < 1000;
    return String.format(Locale.ROOT, plain ? "%.3f" : "%.1e", value);
  }

  private void mark(StringBuilder svg, Event e) {
    double x = x(e.examples());
    if (x >= LEFT && x <= WIDTH) {
      append(
          svg,
          "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\" stroke=\"%s\" opacity=\".45\">"
              + "<title>%s at example %d: %s</title></line>%n",
          x,
          x,
          TOP,
          AXIS,
          OnlineReport.COLOURS.get(e.kind()),
          OnlineReport.name(e.kind()),
          e.examples(),
          OnlineReport.escape(e.evidence()));
    }
  }

  private void mark(StringBuilder svg, List<Published> versions) {
    double last = Double.NEGATIVE_INFINITY;
    for (Published v : versions) {
      double x = x(v.seen());
      if (x < last + 2) {
        continue; // it would lie on the one before
      }
      last = x;
      append(
          svg,
          "<path d=\"M%.1f %d l-4 7 h8 z\" fill=\"#009e73\"><title>version %d of the store"
              + "</title></path>%n",
          x,
          AXIS,
          v.storeVersion());
    }
  }

  private void line(StringBuilder svg, String name, String style) {
    StringBuilder path = new StringBuilder();
    for (Point p : points) {
      double v = p.metrics().getOrDefault(name, Double.NaN);
      if (Double.isFinite(v)) {
        append(path, "%s%.1f %.1f", path.isEmpty() ? "M" : "L", x(p.seen()), y(v));
      }
    }
    svg.append("<path d=\"" + path + "\" fill=\"none\" " + style + "/>\n");
  }

  private void legend(StringBuilder svg, int k) {
    String name = series.get(k);
    append(
        svg,
        "<path d=\"M%d 8 h22\" fill=\"none\" %s/><text x=\"%d\" y=\"12\" font-size=\"12\""
            + " fill=\"#333\">%s</text>%n",
        LEFT + 10 + 150 * k,
        STYLES[k],
        LEFT + 37 + 150 * k,
        legend(name));
  }

  private static String legend(String name) {
    if (name.equals("distance")) {
      return "the last batch";
    }
    return name.endsWith("_fading")
        ? "fading"
        : name.endsWith("_window") ? "window" : "since the beginning";
  }
}
