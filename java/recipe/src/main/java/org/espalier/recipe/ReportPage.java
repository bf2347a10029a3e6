package org.espalier.recipe;

import static org.espalier.recipe.Html.bytes;
import static org.espalier.recipe.Html.escape;
import static org.espalier.recipe.Html.number;
import static org.espalier.recipe.Html.seconds;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.EnumSet;
import java.util.Iterator;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import org.espalier.evaluate.Measure;

/**
 * The report as one HTML file without references to anything outside: style and charts are in it. All that
 * it shows is in the JSON report.
 */
final class ReportPage {
  /** What no column shows: a tile does, or nothing. */
  private static final Set<Measure> NO_COLUMN = EnumSet.of(Measure.MS, Measure.LARGEST_DIFFERENCE);

  private final JsonNode report;
  private final StringBuilder out = new StringBuilder(1 << 16);

  private ReportPage(JsonNode report) {
    this.report = report;
  }

  static String of(JsonNode report) {
    return new ReportPage(report).page();
  }

  private String page() {
    String title = escape(report.path("title").asText());
    out.append("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n")
        .append("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>")
        .append(title)
        .append(" – Espalier</title>\n<style>\n")
        .append(style())
        .append("</style>\n</head>\n<body>\n<header><h1>")
        .append(title)
        .append("</h1>\n<p class=\"muted\">")
        .append(escape(summary()))
        .append("</p></header>\n");
    tiles();
    warnings();
    requirements();
    stages();
    fidelity();
    changedAnswers();
    curves();
    layers();
    files();
    inputs();
    recipe();
    return out.append("</body>\n</html>\n").toString();
  }

  private static String style() {
    try (InputStream in = ReportPage.class.getResourceAsStream("report.css")) {
      return new String(in.readAllBytes(), StandardCharsets.UTF_8);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  private String summary() {
    List<String> done = new ArrayList<>();
    double layers = report.path("model").path("layers_removed").asDouble();
    if (layers > 0) {
      done.add(Math.round(100 * layers) + " % of its layers removed");
    }
    double channels = report.path("model").path("channels_removed").asDouble();
    if (channels > 0) {
      done.add(Math.round(100 * channels) + " % of its hidden channels and heads removed");
    }
    for (JsonNode stage : report.path("stages")) {
      done.add(verb(stage));
    }
    return "Compressed by Espalier in "
        + seconds(report.path("seconds"))
        + ": "
        + String.join(", then ", done)
        + ".";
  }

  private static String verb(JsonNode stage) {
    String verb =
        switch (stage.path("kind").asText()) {
          case "prune" -> "pruned";
          case "quantize" -> "quantized to " + stage.path("weights").asText();
          default ->
              "trained"
                  + (stage.has("low_rank") ? " by matrices of rank " + stage.path("low_rank") : "");
        };
    long steps = stage.path("steps_done").asLong();
    return verb
        + (steps > 0
            ? (verb.startsWith("trained") ? "" : " and trained") + " for " + steps + " steps"
            : "");
  }

  private void tiles() {
    JsonNode f = report.path("fidelity");
    JsonNode made = report.path("outputs").path(0);
    out.append("<div class=\"tiles\">");
    tile(
        "Size",
        number(f.path("size_ratio"), "%.3f"),
        "of "
            + original()
            + ": "
            + bytes(report.path("model").path("bytes"))
            + " to "
            + bytes(made.path("bytes")));
    tile(
        "Speed",
        number(f.path("speedup"), "%.2fx"),
        f.has("ms")
            ? number(f.path("reference_ms"), "%.3g ms")
                + " to "
                + number(f.path("ms"), "%.3g ms")
                + ", one thread"
            : "ONNX Runtime, one thread");
    if (f.has("neighbour_agreement")) {
      tile("Mean cosine", number(f.path("cosine_mean"), "%.4f"), "to the original's embeddings");
      tile(
          "Neighbours agree",
          number(f.path("neighbour_agreement"), "%.3f"),
          "95 % interval "
              + number(f.path("neighbour_agreement_low"), "%.3f")
              + " to "
              + number(f.path("neighbour_agreement_high"), "%.3f"));
    } else if (f.has("perplexity")) {
      besideOriginal("Perplexity", f, "perplexity", "%.4g");
      besideOriginal("Next token", f, "accuracy", "%.4f");
      tile("Same token", number(f.path("agreement"), "%.4f"), "the likeliest, as the original");
    } else if (f.has("relative_error")) {
      if (f.has("rmse")) {
        besideOriginal("RMSE", f, "rmse", "%.4g");
        besideOriginal("R²", f, "r2", "%.4f");
      } else {
        tile("Mean cosine", number(f.path("cosine_mean"), "%.4f"), "to the original's output");
      }
      tile(
          "Error",
          number(f.path("relative_error"), "%.4f"),
          "of the output, as a share of its norm");
    } else {
      besideOriginal("Accuracy", f, "accuracy", "%.4f");
      if (f.has("auc")) {
        besideOriginal("AUC", f, "auc", "%.4f");
      }
      tile("Same class", number(f.path("agreement"), "%.4f"), "as the original gives");
    }
    out.append("</div>\n");
  }

  /** What results are compared with. */
  private String original() {
    String weights = report.path("model").path("weights").asText();
    return weights.isEmpty() ? "the original" : "the original, which is " + weights + " too";
  }

  private void warnings() {
    for (JsonNode warning : report.path("warnings")) {
      out.append("<p class=\"warning\">").append(escape(warning.asText())).append("</p>\n");
    }
  }

  private void requirements() {
    if (!report.has("requirements")) {
      return;
    }
    out.append("<h2>Requirements</h2>\n");
    head("requirement", "measured", "bound", "");
    for (JsonNode verdict : report.path("requirements")) {
      boolean met = verdict.path("met").asBoolean();
      row(
          !met,
          verdict.path("requirement").asText(),
          number(verdict.path("measured"), "%.6g"),
          number(verdict.path("bound"), "%.6g"),
          met ? "met" : "missed");
    }
    foot();
  }

  private void besideOriginal(String name, JsonNode fidelity, String key, String format) {
    tile(
        name,
        number(fidelity.path(key), format),
        "the original has " + number(fidelity.path("reference_" + key), format));
  }

  private void tile(String name, String value, String note) {
    out.append("<div class=\"tile\"><div class=\"name\">")
        .append(escape(name))
        .append("</div><div class=\"value\">")
        .append(escape(value))
        .append("</div><div class=\"note\">")
        .append(escape(note))
        .append("</div></div>");
  }

  private void head(String... headings) {
    out.append("<div class=\"scroll\"><table><thead><tr>");
    for (String heading : headings) {
      out.append("<th>").append(escape(heading)).append("</th>");
    }
    out.append("</tr></thead><tbody>\n");
  }

  private void row(boolean strong, String... cells) {
    out.append(strong ? "<tr class=\"strong\">" : "<tr>");
    for (String cell : cells) {
      out.append("<td>").append(escape(cell)).append("</td>");
    }
    out.append("</tr>\n");
  }

  private void foot() {
    out.append("</tbody></table></div>\n");
  }

  private void stages() {
    out.append("<h2>What was done</h2>\n");
    head(
        "stage",
        "kind",
        "steps",
        "time",
        "taught by",
        "loss before",
        "changed",
        "trained",
        "examples/s",
        "compression's share");
    for (JsonNode s : report.path("stages")) {
      double training = s.path("training_seconds").asDouble();
      row(
          false,
          s.path("name").asText(),
          s.path("kind").asText()
              + (s.has("low_rank") ? ", rank " + s.path("low_rank").asLong() : ""),
          Long.toString(s.path("steps_done").asLong()),
          seconds(s.path("seconds")),
          teacher(s.path("taught_by")),
          number(s.path("before").path("loss"), "%.4g"),
          number(s.path("changed").path("loss"), "%.4g"),
          training > 0 ? number(s.path("after").path("loss"), "%.4g") : "–",
          training > 0
              ? String.format(Locale.ROOT, "%.0f", s.path("examples").asDouble() / training)
              : "–",
          training > 0
              ? String.format(
                  Locale.ROOT, "%.1f %%", 100 * s.path("added_seconds").asDouble() / training)
              : "–");
    }
    foot();
    out.append(
        "<p class=\"muted small\">Loss on validation examples: as the stage began, after its change"
            + " to the model, and at the best state of its training. The last column is the share"
            + " of a training step that masks, fake quantization and the optimizer take.</p>\n");
  }

  private String teacher(JsonNode taughtBy) {
    if (taughtBy.has("stage")) {
      return "what " + taughtBy.path("stage").asText() + " left";
    }
    if (!taughtBy.has("file")) {
      return "–";
    }
    return taughtBy.path("file").equals(report.path("model").path("file"))
        ? "the original"
        : "the teacher";
  }

  private void fidelity() {
    JsonNode last = report.path("fidelity");
    List<Measure> measures = new ArrayList<>();
    List<String> headings = new ArrayList<>(List.of("model"));
    for (Measure m : Measure.values()) {
      if (last.has(m.key()) && !NO_COLUMN.contains(m)) {
        measures.add(m);
        headings.add(m.heading());
      }
    }
    out.append("<h2>Answers after each stage</h2>\n");
    head(headings.toArray(String[]::new));
    List<String> original = new ArrayList<>(List.of("original, float32"));
    for (Measure m : measures) {
      original.add(m.format(last.path(m.referenceKey()).asDouble(m.ofItself())));
    }
    row(false, original.toArray(String[]::new));
    int left = report.path("stages").size();
    for (JsonNode s : report.path("stages")) {
      left--;
      String name = s.path("name").asText();
      measured(name + ", not trained yet", s.path("fidelity_untrained"), measures, false);
      measured(name, left == 0 ? last : s.path("fidelity"), measures, left == 0);
    }
    foot();
    JsonNode data = report.path("data");
    out.append("<p class=\"muted small\">Measured in ONNX Runtime on ")
        .append(data.path("evaluation").asLong())
        .append(" ")
        .append(escape(data.path("kind").asText()))
        .append(" that training did not see, each alone.");
    if (last.has("batch_cosine_mean")) {
      out.append(
          " «In a batch of 32» compares the model with itself: a text alone and in a padded batch"
              + " (dynamic int8 chooses its steps from the whole batch).");
    }
    out.append("</p>\n");
  }

  /** What compression did to single examples: those whose answer changed most. */
  private void changedAnswers() {
    JsonNode changed = report.path("fidelity").path("changed_answers");
    if (changed.isEmpty()) {
      return;
    }
    out.append("<h2>Answers that changed most</h2>\n<div class=\"answers\">\n");
    for (JsonNode answer : changed) {
      out.append("<div class=\"answer\">");
      if (answer.has("thumbnail")) {
        out.append("<img alt=\"\" src=\"")
            .append(escape(answer.path("thumbnail").asText()))
            .append("\">");
      }
      String what =
          answer.has("text")
              ? answer.path("text").asText().strip().replaceAll("\\s*\\n\\s*", "\n")
              : answer.has("image")
                  ? fileName(answer.path("image").asText())
                  : "example " + (answer.path("example").asLong() + 1);
      out.append("<div class=\"what\">").append(escape(what)).append("</div><div>");
      out.append(escape(given(answer, "reference", "reference_probability")))
          .append(" <span class=\"muted\">before</span></div><div><strong>")
          .append(escape(given(answer, "answer", "probability")))
          .append("</strong> <span class=\"muted\">now</span></div>");
      if (answer.has("label")) {
        String label = named(answer, "label");
        boolean right = answer.path("label").equals(answer.path("answer"));
        out.append("<div class=\"")
            .append(right ? "muted" : "wrong")
            .append("\">")
            .append(escape(label))
            .append(" is right</div>");
      }
      out.append("</div>\n");
    }
    out.append("</div>\n");
  }

  private static String fileName(String path) {
    return path.substring(path.lastIndexOf('/') + 1);
  }

  private static String given(JsonNode answer, String key, String probability) {
    return answer.has(key)
        ? named(answer, key) + " " + number(answer.path(probability), "%.3f")
        : "NaN";
  }

  private static String named(JsonNode answer, String key) {
    String name = answer.path(key + "_name").asText();
    return name.isEmpty() ? "class " + answer.path(key).asLong() : name;
  }

  private void measured(String name, JsonNode numbers, List<Measure> measures, boolean strong) {
    if (!numbers.isObject()) {
      return;
    }
    List<String> cells = new ArrayList<>(List.of(name));
    measures.forEach(m -> cells.add(m.format(numbers.path(m.key()).asDouble(Double.NaN))));
    row(strong, cells.toArray(String[]::new));
  }

  private void curves() {
    boolean any = false;
    for (JsonNode s : report.path("stages")) {
      String chart = LossChart.of(s);
      if (chart.isEmpty()) {
        continue;
      }
      if (!any) {
        out.append("<h2>Training</h2>\n");
        any = true;
      }
      out.append("<figure><figcaption><strong>")
          .append(escape(s.path("name").asText()))
          .append(
              "</strong> <span class=\"muted\"><i class=\"key a\"></i>loss of the steps"
                  + "<i class=\"key b\"></i>on validation examples</span></figcaption>")
          .append(chart)
          .append("</figure>\n");
    }
  }

  private void layers() {
    if (report.path("layers").isEmpty()) {
      return;
    }
    double largest = 0;
    boolean quantized = false;
    boolean byStage = false;
    for (JsonNode stage : report.path("stages")) {
      byStage |= stage.path("kind").asText().equals("quantize");
    }
    for (JsonNode layer : report.path("layers")) {
      largest = Math.max(largest, layer.path("error").asDouble());
      quantized |= layer.path("bits").asInt() < 32;
    }
    out.append("<h2>Layers</h2>\n<details open><summary>")
        .append(report.path("layers").size())
        .append(" weight tensors</summary>\n");
    head(
        quantized
            ? new String[] {"weight", "shape", "bits", "scales", "zeros", "change"}
            : new String[] {"weight", "shape", "zeros", "change"});
    for (JsonNode layer : report.path("layers")) {
      List<String> dims = new ArrayList<>();
      layer.path("shape").forEach(d -> dims.add(d.asText()));
      out.append("<tr><td>").append(escape(layer.path("name").asText())).append("</td>");
      out.append("<td>").append(String.join(" × ", dims)).append("</td>");
      if (quantized) {
        out.append("<td>").append(layer.path("bits").asInt()).append("</td><td>");
        out.append(
                layer.path("smallest_scale").isNumber()
                    ? number(layer.path("smallest_scale"), "%.2g")
                        + " to "
                        + number(layer.path("largest_scale"), "%.2g")
                    : "–")
            .append("</td>");
      }
      double sparsity = layer.path("sparsity").asDouble();
      bar(String.format(Locale.ROOT, "%.1f %%", 100 * sparsity), sparsity);
      double error = layer.path("error").asDouble();
      bar(
          layer.path("error").isNumber() ? String.format(Locale.ROOT, "%.2f %%", 100 * error) : "–",
          largest > 0 ? error / largest : 0);
      out.append("</tr>\n");
    }
    foot();
    out.append(
        "<p class=\"muted small\">«Change» is the root mean squared difference to the weights "
            + (byStage ? "that were quantized, before they were rounded" : "at the start")
            + ", as a share of their own root mean square.</p></details>\n");
    for (JsonNode line : report.path("resting")) {
      out.append("<p class=\"muted small\">").append(escape(line.asText())).append("</p>\n");
    }
  }

  private void bar(String text, double share) {
    out.append("<td><span class=\"bar\"><i style=\"width:")
        .append(String.format(Locale.ROOT, "%.1f", 100 * Math.max(0, Math.min(1, share))))
        .append("%\"></i><b>")
        .append(text)
        .append("</b></span></td>");
  }

  private void files() {
    out.append(
        "<h2>Files</h2>\n"
            + "<div class=\"scroll\"><table><thead><tr><th>file</th><th class=\"text\">what it"
            + " is</th><th>size</th><th class=\"text\">SHA-256</th></tr></thead><tbody>\n");
    for (JsonNode file : report.path("outputs")) {
      String sum = escape(file.path("sha256").asText());
      out.append("<tr><td>")
          .append(escape(file.path("file").asText()))
          .append("</td><td class=\"text long\">")
          .append(escape(file.path("what").asText()))
          .append("</td><td>")
          .append(bytes(file.path("bytes")))
          .append("</td><td class=\"text\"><code title=\"")
          .append(sum)
          .append("\">")
          .append(sum, 0, Math.min(16, sum.length()))
          .append("…</code></td></tr>\n");
    }
    foot();
  }

  private void inputs() {
    out.append("<h2>Model, data, machine</h2>\n<dl>");
    JsonNode model = report.path("model");
    term("model", model.path("file").asText());
    term("its SHA-256", model.path("sha256").asText());
    for (String other : List.of("pooling", "teacher", "student")) {
      if (model.has(other)) {
        term(other, model.path(other).asText());
      }
    }
    JsonNode data = report.path("data");
    term(data.path("kind").asText(), data.path("source").asText());
    if (data.has("task")) {
      term("task", data.path("task").asText());
    }
    term(
        "split",
        data.path("training").asLong()
            + " trained on, "
            + data.path("validation").asLong()
            + " for validation, "
            + data.path("evaluation").asLong()
            + " measured"
            + (data.has("evaluation_source")
                ? ", of " + data.path("evaluation_source").asText()
                : ""));
    for (Iterator<Map.Entry<String, JsonNode>> i = report.path("machine").fields(); i.hasNext(); ) {
      Map.Entry<String, JsonNode> entry = i.next();
      term(entry.getKey(), entry.getValue().asText());
    }
    out.append("</dl>\n");
  }

  private void term(String name, String text) {
    out.append("<dt>")
        .append(escape(name))
        .append("</dt><dd>")
        .append(escape(text))
        .append("</dd>");
  }

  private void recipe() {
    JsonNode recipe = report.path("recipe");
    out.append("<h2>Recipe</h2>\n<pre>")
        .append(escape(recipe.path("text").asText()))
        .append("</pre>\n");
    for (JsonNode set : recipe.path("set")) {
      out.append("<p><code>--set ").append(escape(set.asText())).append("</code></p>\n");
    }
    out.append("<p class=\"muted small\">The same recipe with seed ")
        .append(recipe.path("seed").asText())
        .append(" gives the same bytes on the same machine.</p>\n");
  }
}
