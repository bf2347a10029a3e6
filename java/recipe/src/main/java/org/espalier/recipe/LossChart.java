package org.espalier.recipe;

import com.fasterxml.jackson.databind.JsonNode;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;

/**
 * The loss of a stage over its steps as SVG: each step thin, its moving average thick, the looks at the
 * validation examples as dots. The axis is logarithmic where values span more than a factor of 20.
 */
final class LossChart {
  private static final int WIDTH = 520;
  private static final int HEIGHT = 200;
  private static final int LEFT = 50;
  private static final int RIGHT = 12;
  private static final int TOP = 12;
  private static final int BOTTOM = 28;

  /** More points than pixels are of no use. */
  private static final int MAX_POINTS = 600;

  private static final double LOG_FROM = 20;

  private final double lastStep;
  private final double low;
  private final double high;
  private final boolean log;

  private LossChart(double lastStep, double low, double high) {
    this.lastStep = lastStep;
    this.log = low > 0 && high > LOG_FROM * low;
    double pad = high > low ? 0.05 * (high - low) : Math.max(1e-12, 0.1 * Math.abs(high));
    this.low = log ? low / 1.2 : low >= 0 ? Math.max(0, low - pad) : low - pad;
    this.high = log ? high * 1.2 : high + pad;
  }

  /**
   * Draws a stage of the report.
   *
   * @return SVG, or nothing where there was no step
   */
  static String of(JsonNode stage) {
    JsonNode curve = stage.path("curve");
    List<double[]> steps = new ArrayList<>();
    for (int i = 0; i < curve.path("step").size(); i++) {
      add(steps, curve.get("step").get(i), curve.get("loss").get(i));
    }
    if (steps.isEmpty()) {
      return "";
    }
    List<double[]> looks = new ArrayList<>();
    JsonNode validations = stage.path("validations");
    for (int i = 0; i < validations.size(); i++) {
      // Where a stage changes the model, the look after the change is the one that training starts
      // from.
      boolean start = validations.get(i).path("step").asLong() == 0;
      if (!start
          || i + 1 == validations.size()
          || validations.get(i + 1).path("step").asLong() > 0) {
        add(looks, validations.get(i).path("step"), validations.get(i).path("loss"));
      }
    }
    List<double[]> smooth = smooth(steps);
    // A single spike must not flatten the rest: the axis follows the average and the looks.
    double low = Double.POSITIVE_INFINITY;
    double high = Double.NEGATIVE_INFINITY;
    for (List<double[]> line : List.of(smooth, looks)) {
      for (double[] point : line) {
        low = Math.min(low, point[1]);
        high = Math.max(high, point[1]);
      }
    }
    double least = steps.stream().mapToDouble(step -> step[1]).min().getAsDouble();
    low = Math.min(low, Math.max(least, low / 2));
    double last = Math.max(1, steps.get(steps.size() - 1)[0]);
    return new LossChart(last, low, high).draw(steps, smooth, looks, stage.path("name").asText());
  }

  private static void add(List<double[]> to, JsonNode step, JsonNode value) {
    if (value.isNumber()) {
      to.add(new double[] {step.asDouble(), value.asDouble()});
    }
  }

  private static List<double[]> smooth(List<double[]> points) {
    double share = Math.min(1, 20.0 / points.size());
    share = Math.max(0.03, share);
    List<double[]> result = new ArrayList<>();
    double mean = 0;
    double weight = 0;
    for (double[] point : points) {
      mean += share * (point[1] - mean);
      weight += share * (1 - weight);
      result.add(new double[] {point[0], mean / weight});
    }
    return result;
  }

  private double x(double step) {
    return LEFT + (WIDTH - LEFT - RIGHT) * step / lastStep;
  }

  private double y(double value) {
    double v = Math.max(low, Math.min(high, value));
    double t = log ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low);
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * t;
  }

  private String draw(
      List<double[]> steps, List<double[]> smooth, List<double[]> looks, String name) {
    StringBuilder svg = new StringBuilder();
    svg.append(
        String.format(
            Locale.ROOT,
            "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"Loss of the stage %s over %d"
                + " steps\">",
            WIDTH,
            HEIGHT,
            Html.escape(name),
            (long) lastStep));
    for (double value : ticks()) {
      svg.append(
          String.format(
              Locale.ROOT,
              "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>"
                  + "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>",
              LEFT,
              WIDTH - RIGHT,
              y(value),
              y(value),
              LEFT - 6,
              y(value) + 3,
              label(value)));
    }
    double stride = Math.max(1, nice(lastStep / 5));
    for (double step = 0; step <= lastStep * 1.001; step += stride) {
      svg.append(
          String.format(
              Locale.ROOT,
              "<text x=\"%.1f\" y=\"%d\" text-anchor=\"%s\">%s</text>",
              x(step),
              HEIGHT - 8,
              step == 0 ? "start" : x(step) > WIDTH - 40 ? "end" : "middle",
              label(step)));
    }
    svg.append("<path class=\"raw\" d=\"").append(path(steps)).append("\"/>");
    svg.append("<path class=\"smooth\" d=\"").append(path(smooth)).append("\"/>");
    svg.append("<path class=\"looks\" d=\"").append(path(looks)).append("\"/>");
    for (double[] look : looks) {
      svg.append(
          String.format(
              Locale.ROOT,
              "<circle class=\"look\" cx=\"%.1f\" cy=\"%.1f\" r=\"3\"><title>step %d:"
                  + " %.4g</title></circle>",
              x(look[0]),
              y(look[1]),
              (long) look[0],
              look[1]));
    }
    return svg.append("</svg>").toString();
  }

  private String path(List<double[]> points) {
    StringBuilder d = new StringBuilder();
    int stride = Math.max(1, points.size() / MAX_POINTS);
    for (int i = 0; i < points.size(); i += stride) {
      d.append(
          String.format(
              Locale.ROOT,
              "%s%.1f %.1f",
              i == 0 ? "M" : "L",
              x(points.get(i)[0]),
              y(points.get(i)[1])));
    }
    return d.toString();
  }

  private List<Double> ticks() {
    List<Double> ticks = new ArrayList<>();
    if (log) {
      for (double decade = Math.pow(10, Math.floor(Math.log10(low)));
          decade <= high;
          decade *= 10) {
        for (double m : new double[] {1, 2, 5}) {
          if (decade * m >= low && decade * m <= high) {
            ticks.add(decade * m);
          }
        }
      }
      return ticks;
    }
    double stride = nice((high - low) / 4);
    for (double v = Math.ceil(low / stride) * stride; v <= high; v += stride) {
      ticks.add(v);
    }
    return ticks;
  }

  /** The next of 1, 2 and 5 times a power of ten. */
  private static double nice(double value) {
    double power = Math.pow(10, Math.floor(Math.log10(value)));
    double rest = value / power;
    return (rest <= 1 ? 1 : rest <= 2 ? 2 : rest <= 5 ? 5 : 10) * power;
  }

  private static String label(double value) {
    double magnitude = Math.abs(value);
    if (magnitude < 1e-15) {
      return "0";
    }
    if (magnitude >= 1e-3 && magnitude < 1e6) {
      String text = String.format(Locale.ROOT, magnitude >= 100 ? "%.0f" : "%.4f", value);
      return text.contains(".") ? text.replaceAll("\\.?0+$", "") : text;
    }
    return String.format(Locale.ROOT, "%.0e", value);
  }
}
