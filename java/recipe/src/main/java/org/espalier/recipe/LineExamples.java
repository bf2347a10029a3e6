package org.espalier.recipe;

import ai.onnx.proto.OnnxMl.ValueInfoProto;
import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.IntStream;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.evaluate.ExampleLine;
import org.espalier.evaluate.ExampleTensors;
import org.espalier.evaluate.TextTokenizer;
import org.espalier.evaluate.TextTokenizer.Tokens;
import org.espalier.format.NearNames;
import org.espalier.format.onnx.MissingValues;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.safetensors.Names;
import org.espalier.train.Examples;
import org.espalier.train.Labels;

/**
 * Examples with labels, in lines of CSV, or a JSON object a line: {@code "label"} is a class, from 0 on or by its name, or a number; {@code
 * "labels"} are 0 or 1 for each of several classes; {@code "values"} are several numbers. All lines have one of these, or
 * null, or none, where it is not known.
 *
 * @param file that they are of
 * @param lines all texts, or all numbers
 * @param labels of as many; null where none is known
 */
public record LineExamples(Path file, List<ExampleLine> lines, Labels labels) {
  public LineExamples {
    lines = List.copyOf(lines);
  }

  /**
   * Reads a file.
   *
   * @param task whether labels are classes or numbers; where it says neither, numbers where one has a fraction
   * @param classes the names of the classes, in their order; empty where labels are their numbers
   * @param asked the inputs of the models by name, which say how many columns of CSV are features; empty for a module
   * @throws InputException that names the example, or where two classes have one name
   */
  public static LineExamples read(
      Path file, Recipe.Task task, List<String> classes, Map<String, ValueInfoProto> asked) {
    if (Set.copyOf(classes).size() < classes.size()) {
      throw new InputException("of the classes " + classes + " a word is there twice");
    }
    LineExamples unlabelled = unlabelled(file, asked);
    return new LineExamples(
        file, unlabelled.lines, new Reader(file, classes).labels(unlabelled.lines, task));
  }

  /**
   * Reads a file, and no labels.
   *
   * @param asked the inputs of the models by name; not used for JSON
   * @throws InputException that names the example
   */
  public static LineExamples unlabelled(Path file, Map<String, ValueInfoProto> asked) {
    List<ExampleLine> lines =
        ExampleLine.areJson(file.toString())
            ? ExampleLine.read(file)
            : ExampleLine.readCells(file, LineInputs.features(asked));
    if (lines.isEmpty()) {
      throw new InputException(file + " holds no example");
    }
    boolean texts = lines.get(0).text() != null;
    for (int i = 0; i < lines.size(); i++) {
      if (texts != (lines.get(i).text() != null)) {
        throw new InputException(
            file
                + ": example "
                + (i + 1)
                + ": there is "
                + (texts
                    ? "no text, and earlier ones have one"
                    : "a text, and earlier ones have none"));
      }
    }
    return new LineExamples(file, lines, null);
  }

  /** At most so many of them, evenly spread, without labels. */
  public LineExamples some(int count) {
    return new LineExamples(file, ActivationSource.spread(lines, count), null);
  }

  /** Whether they are texts; else they are numbers. */
  public boolean areTexts() {
    return lines.get(0).text() != null;
  }

  /**
   * The tokens of the texts, or of each text with the second one that is read together with it.
   *
   * @throws InputException that names the text, where one has none
   */
  public List<Tokens> tokens(TextTokenizer tokenizer) {
    List<Tokens> tokens = new ArrayList<>(lines.size());
    for (ExampleLine line : lines) {
      tokens.add(tokenizer.encode(line.text(), line.second()));
      if (tokens.get(tokens.size() - 1).length() == 0) {
        throw new InputException(
            file + ": the text " + Names.quote(line.text()) + " has no tokens");
      }
    }
    return tokens;
  }

  /**
   * Numbers as the inputs of models, with the labels.
   *
   * @param asked the models' inputs by name; empty for a module, which has one
   * @param missing whether NaN says that a value is missing, which the model knows
   * @throws InputException that names the example
   */
  Examples.Labelled tensors(Map<String, ValueInfoProto> asked, boolean missing) {
    return new Examples.Labelled(new LineInputs(file, missing).of(lines, asked), labels);
  }

  /** The inputs of a model by name. */
  public static Map<String, ValueInfoProto> asked(OnnxModel model) {
    return LineInputs.asked(List.of(model));
  }

  /**
   * Numbers as a model is fed them, without the labels.
   *
   * @throws InputException that names the example
   */
  public ExampleTensors fed(OnnxModel model) {
    return RunHost.tensors(tensors(asked(model), MissingValues.areKnownTo(model)));
  }

  /**
   * Each text once, as it is there first with a label that is known, if it has one.
   *
   * @param without others that are left out too; null for none
   */
  LineExamples distinct(LineExamples without) {
    Set<List<String>> left = new HashSet<>();
    if (without != null) {
      without.lines.forEach(line -> left.add(texts(line)));
    }
    Map<List<String>, Integer> kept = new LinkedHashMap<>();
    for (int i = 0; i < lines.size(); i++) {
      if (!left.contains(texts(lines.get(i)))) {
        kept.merge(
            texts(lines.get(i)),
            i,
            (before, now) -> isKnown(now) && !isKnown(before) ? now : before);
      }
    }
    int[] indices = kept.values().stream().mapToInt(Integer::intValue).toArray();
    return new LineExamples(
        file,
        IntStream.of(indices).mapToObj(lines::get).toList(),
        labels == null ? null : labels.of(indices));
  }

  private boolean isKnown(int index) {
    return labels != null && labels.of(index).known(null) > 0;
  }

  private static List<String> texts(ExampleLine line) {
    return Arrays.asList(line.text(), line.second());
  }

  /** The labels of a file. */
  private record Reader(Path file, List<String> classes) {
    Labels labels(List<ExampleLine> lines, Recipe.Task task) {
      String key = key(lines);
      if (key == null) {
        return null;
      }
      int width = 0;
      List<double[]> rows = new ArrayList<>();
      boolean fractions = false;
      for (int i = 0; i < lines.size(); i++) {
        JsonNode given = value(lines.get(i), key);
        double[] row = given == null ? null : numbers(given, key, i);
        rows.add(row);
        if (row == null) {
          continue;
        }
        if (width > 0 && row.length != width) {
          throw wrong(i, key + " has " + row.length + " entries, earlier ones " + width);
        }
        width = row.length;
        for (double value : row) {
          fractions |= !Double.isNaN(value) && value != Math.rint(value);
        }
      }
      boolean numbers =
          task == Recipe.Task.REGRESSION
              || key.equals("values")
              || task == Recipe.Task.AUTO && fractions;
      if (numbers && (key.equals("labels") || !classes.isEmpty())) {
        throw new InputException(
            file
                + ": "
                + key
                + (classes.isEmpty() ? " are classes, 0 or 1" : " is a class, by data.classes")
                + ", and numbers are to be learned: \"label\": 0.5 or \"values\": [0.5, 2]");
      }
      if (key.equals("values") && task == Recipe.Task.CLASSIFICATION) {
        throw new InputException(
            file + ": values are numbers; classes are \"label\" or \"labels\"");
      }
      return numbers ? numbers(rows, width) : classes(rows, width, key);
    }

    /** Under which key the labels are; null where there are none. */
    private String key(List<ExampleLine> lines) {
      String key = null;
      for (int i = 0; i < lines.size(); i++) {
        for (String some : List.of("label", "labels", "values")) {
          if (value(lines.get(i), some) == null) {
            continue;
          }
          if (key != null && !key.equals(some)) {
            throw wrong(i, "there is " + some + ", and " + key + " before; one of them is right");
          }
          key = some;
        }
      }
      return key;
    }

    private static JsonNode value(ExampleLine line, String key) {
      return switch (key) {
        case "label" -> line.label();
        case "labels" -> line.labels();
        default -> line.values();
      };
    }

    private InputException wrong(int line, String what) {
      return new InputException(file + ": example " + (line + 1) + ": " + what);
    }

    private double[] numbers(JsonNode given, String key, int line) {
      if (key.equals("label")) {
        return new double[] {number(given, key, line)};
      }
      if (!given.isArray() || given.isEmpty()) {
        throw wrong(line, key + " is not a list of numbers");
      }
      double[] row = new double[given.size()];
      for (int k = 0; k < row.length; k++) {
        row[k] = given.get(k).isNull() ? Double.NaN : number(given.get(k), key, line);
      }
      return row;
    }

    private double number(JsonNode given, String key, int line) {
      if (given.isTextual() && key.equals("label")) {
        int known = classes.indexOf(given.textValue());
        if (known < 0) {
          throw wrong(
              line,
              "the label "
                  + Names.quote(given.textValue())
                  + " is "
                  + (classes.isEmpty()
                      ? "a word; data.classes (--classes) says which words there are, in the order"
                          + " of the model's outputs"
                      : "none of the classes " + NearNames.list(given.textValue(), classes)));
        }
        return known;
      }
      if (given.isBoolean()) {
        return given.booleanValue() ? 1 : 0;
      }
      if (!given.isNumber() || Double.isInfinite((float) given.doubleValue())) {
        throw wrong(line, key + " holds " + Names.quote(given.toString()) + ", which is no number");
      }
      return given.doubleValue();
    }

    private static Labels numbers(List<double[]> rows, int width) {
      float[] values = new float[rows.size() * width];
      for (int i = 0; i < values.length; i++) {
        double[] row = rows.get(i / width);
        values[i] = row == null ? Float.NaN : (float) row[i % width];
      }
      return new Labels.Numbers(values, width);
    }

    private Labels classes(List<double[]> rows, int width, String key) {
      long[] values = new long[rows.size() * width];
      for (int i = 0; i < values.length; i++) {
        double[] row = rows.get(i / width);
        boolean known = row != null && !Double.isNaN(row[i % width]);
        values[i] = known ? (long) row[i % width] : Labels.Classes.NO_LABEL;
        if (known && values[i] != row[i % width]) {
          throw wrong(i / width, key + " is " + row[i % width] + "; classes are whole numbers");
        }
      }
      return new Labels.Classes(values, width);
    }
  }
}
