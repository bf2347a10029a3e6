package org.espalier.benchmarks;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TreeMap;

/**
 * Draws how many times faster than libtorch the operations are, from rows of {@code results/} alone.
 *
 * <pre>RatioChart OUT.svg RESULTS.json…</pre>
 *
 * <p>The files are of one machine, of libtorch with its allocator as it comes and with its page faults tuned away; of what
 * was measured twice the last counts. Of several ways the slowest of ours is compared with the fastest of
 * libtorch's.
 */
public final class RatioChart {
  private static final int WIDTH = 900;
  private static final int LEFT = 290;
  private static final int RIGHT = 190;
  private static final int TOP = 92;
  private static final int ROW = 22;
  private static final double MOST = 500;
  private static final String TUNED = "#1f7a4d";
  private static final String AS_IT_COMES = "#a9d3bd";

  /**
   * One operation at one size, with the most threads that were measured.
   *
   * @param asItComes times of libtorch's in ours
   * @param ceiling the share of the machine's own ceiling; NaN where none was measured
   */
  private record Row(String name, double asItComes, double tuned, double ceiling) {}

  private RatioChart() {}

  public static void main(String[] arguments) throws IOException {
    if (arguments.length < 3) {
      throw new IllegalArgumentException("RatioChart OUT.svg RESULTS.json…");
    }
    Map<String, Map<String, Times>> byAllocator = new TreeMap<>();
    JsonNode last = null;
    for (String file : List.of(arguments).subList(1, arguments.length)) {
      JsonNode document = new ObjectMapper().readTree(Path.of(file).toFile());
      if (last != null && !document.path("machine").equals(last.path("machine"))) {
        throw new IllegalArgumentException(file + " is of another machine");
      }
      byAllocator
          .computeIfAbsent(document.path("allocator").asText(), a -> new TreeMap<>())
          .putAll(times(document));
      last = document;
    }
    Map<String, Times> none = Map.of();
    List<Row> rows =
        rows(byAllocator.getOrDefault("default", none), byAllocator.getOrDefault("tuned", none));
    Files.writeString(Path.of(arguments[0]), svg(last, rows));
  }

  private static List<Row> rows(Map<String, Times> asItComes, Map<String, Times> tuned) {
    List<Row> rows = new ArrayList<>();
    tuned.forEach(
        (name, times) -> {
          Times other = asItComes.get(name);
          if (other != null && times.isCompared() && other.isCompared()) {
            rows.add(new Row(name, other.ratio(), times.ratio(), times.ofCeiling()));
          }
        });
    if (rows.isEmpty()) {
      throw new IllegalArgumentException("no operation was measured beside libtorch in both");
    }
    return rows;
  }

  /** The medians of one operation at one size, in milliseconds. */
  private static final class Times {
    private int threads;
    private double ours = Double.NaN;
    private double peer = Double.NaN;
    private double ceiling = Double.NaN;

    void add(JsonNode row) {
      int count = row.path("threads").asInt();
      if (count > threads) {
        threads = count;
        ours = Double.NaN;
        peer = Double.NaN;
        ceiling = Double.NaN;
      }
      if (count < threads) {
        return;
      }
      double ms = row.path("ms_p50").asDouble();
      String method = row.path("method").asText();
      if (method.startsWith("espalier")) {
        ours = ours >= ms ? ours : ms;
      } else if (method.startsWith("torch")) {
        peer = peer <= ms ? peer : ms;
      } else {
        ceiling = ceiling >= ms ? ceiling : ms;
      }
    }

    boolean isCompared() {
      return ours > 0 && peer > 0;
    }

    double ratio() {
      return peer / ours;
    }

    double ofCeiling() {
      return ceiling / ours;
    }
  }

  private static Map<String, Times> times(JsonNode document) {
    Map<String, Times> times = new TreeMap<>();
    for (JsonNode row : document.path("rows")) {
      String name = row.path("operation").asText() + "  " + row.path("size").asText();
      times.computeIfAbsent(name, n -> new Times()).add(row);
    }
    return times;
  }

  private static double x(double ratio) {
    double share = Math.log(Math.max(1, ratio)) / Math.log(MOST);
    return LEFT + (WIDTH - LEFT - RIGHT) * Math.min(1, share);
  }

  private static String svg(JsonNode document, List<Row> rows) {
    int height = TOP + ROW * rows.size() + 24;
    StringBuilder out = new StringBuilder();
    add(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-size=\"13\""
            + " font-family=\"DejaVu Sans, Verdana, sans-serif\">",
        WIDTH,
        height);
    add(out, "<rect width=\"%d\" height=\"%d\" fill=\"#fcfcfa\"/>", WIDTH, height);
    text(
        out,
        16,
        28,
        "start",
        "#1a1a1a",
        "font-size=\"18\" font-weight=\"bold\"",
        "Times faster than libtorch");
    String where =
        document.path("machine").asText()
            + ", "
            + document.path("isa").asText()
            + ", "
            + document.path("time").asText().substring(0, 10)
            + "; in one JVM on the same data";
    text(out, 16, 48, "start", "#5a5f5c", "", where);
    bar(out, 16, 58, 14, 8, TUNED);
    text(out, 36, 70, "start", "#5a5f5c", "", "libtorch with its page faults tuned away");
    bar(out, LEFT + 60, 58, 14, 14, AS_IT_COMES);
    text(out, LEFT + 80, 70, "start", "#5a5f5c", "", "libtorch as it comes");
    text(out, WIDTH - 16, 70, "end", "#5a5f5c", "", "of the ceiling");
    for (int tick : new int[] {1, 2, 5, 10, 20, 50, 100, 200, 500}) {
      add(
          out,
          "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\" stroke=\"#dcdfdc\"/>",
          x(tick),
          x(tick),
          TOP - 8,
          height - 22);
      text(out, x(tick), height - 8, "middle", "#5a5f5c", "font-size=\"11\"", tick + "x");
    }
    for (int i = 0; i < rows.size(); i++) {
      Row row = rows.get(i);
      int y = TOP + ROW * i;
      text(out, LEFT - 10, y + 11, "end", "#1a1a1a", "", row.name);
      bar(out, LEFT, y, x(row.asItComes) - LEFT, 14, AS_IT_COMES);
      bar(out, LEFT, y + 3, x(row.tuned) - LEFT, 8, TUNED);
      double end = Math.max(x(row.tuned), x(row.asItComes));
      String ratio =
          number(Math.min(row.tuned, row.asItComes))
              + "x to "
              + number(Math.max(row.tuned, row.asItComes))
              + "x";
      text(out, end + 6, y + 11, "start", "#1a1a1a", "", ratio);
      if (!Double.isNaN(row.ceiling)) {
        String share = String.format(Locale.ROOT, "%.0f %%", 100 * row.ceiling);
        text(out, WIDTH - 16, y + 11, "end", "#5a5f5c", "", share);
      }
    }
    return out.append("</svg>\n").toString();
  }

  private static String number(double ratio) {
    return String.format(Locale.ROOT, ratio < 9.95 ? "%.1f" : "%.0f", ratio);
  }

  private static void bar(
      StringBuilder out, double x, double y, double width, int height, String colour) {
    add(
        out,
        "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/>",
        x,
        y,
        Math.max(0, width),
        height,
        colour);
  }

  private static void text(
      StringBuilder out, double x, double y, String anchor, String colour, String style, String t) {
    add(
        out,
        "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" fill=\"%s\" %s>%s</text>",
        x,
        y,
        anchor,
        colour,
        style,
        t.replace("&", "&amp;").replace("<", "&lt;"));
  }

  private static void add(StringBuilder out, String format, Object... values) {
    out.append(String.format(Locale.ROOT, format, values)).append('\n');
  }
}
