package org.espalier.recipe;

import ai.onnx.proto.OnnxMl.TensorShapeProto.Dimension;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Consumer;
import java.util.function.Supplier;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.espalier.InputException;
import org.espalier.backend.CpuThreads;
import org.espalier.compress.Progress;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.evaluate.ExampleLine;
import org.espalier.evaluate.ExampleTensors;
import org.espalier.evaluate.TextTokenizer;
import org.espalier.evaluate.TextTokenizer.Tokens;
import org.espalier.format.ComputedList;
import org.espalier.format.CsvLine;
import org.espalier.format.JsonNumbers;
import org.espalier.format.Names;
import org.espalier.format.NearNames;
import org.espalier.format.onnx.MissingValues;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.image.ImageInput;
import org.espalier.image.ImageProcessor;
import org.espalier.image.ImageTensors;
import org.espalier.image.Images;
import org.espalier.online.ClassNames;
import org.espalier.train.Examples;
import org.espalier.train.Labels;

/**
 * Examples with labels, in lines of CSV, in CoNLL's columns, or a JSON object a line: {@code "label"} is a class, from 0 on or by its name, or a
 * number; {@code "labels"} are 0 or 1 for each of several classes; {@code "values"} are several numbers; {@code "tags"} are a class for each
 * word. All lines have one of these, or null, or none, where it is not known.
 *
 * Or a folder of images, with a folder for each class.
 *
 * @param file that they are of; a folder of images
 * @param lines all texts, all words, all images, or all numbers
 * @param labels of as many, {@link Labels.TokenClasses} of their words where they have tags; null where none is known
 * @param classes the names of the classes in their order; empty where labels are their numbers
 */
public record LineExamples(
    Path file, List<ExampleLine> lines, Labels labels, List<String> classes) {
  /** Of the names of classes, in a note. */
  private static final int SHOWN = 5;

  public LineExamples {
    lines = List.copyOf(lines);
  }

  /**
   * Reads a file.
   *
   * @param task whether labels are classes or numbers; where it says neither, numbers where one has a fraction
   * @param classes which class a word is
   * @param asked the inputs of the models by name, which say how many columns of CSV are features; empty for a module
   * @throws InputException that names the example
   */
  public static LineExamples read(
      Path file, Recipe.Task task, ClassOrder classes, Map<String, ValueInfoProto> asked) {
    LineExamples unlabelled = unlabelled(file, classes.given(), asked);
    boolean cells = ExampleLine.areCells(file.toString());
    boolean words = unlabelled.lines.stream().anyMatch(line -> hasWords(line, cells));
    List<String> names = classes.names(words, unlabelled.classes);
    if (cells || ExampleLine.areColumns(file.toString())) {
      requireWords(file, names);
    }
    return new LineExamples(
        file, unlabelled.lines, new Reader(file, names).labels(unlabelled.lines, task), names);
  }

  /** Refuses names that are another class as numbers, where both are written alike. */
  private static void requireWords(Path file, List<String> names) {
    for (int i = 0; i < names.size(); i++) {
      if (ClassNames.isNumber(names.get(i)) && !names.get(i).equals(Integer.toString(i))) {
        throw new InputException(
            file
                + ": the class "
                + i
                + " is called "
                + Names.quote(names.get(i))
                + ", which is no word; numbers are classes from 0 on without being named");
      }
    }
  }

  /** Whether a label is a word, or one of tags, whose words say what entities are. */
  private static boolean hasWords(ExampleLine line, boolean cells) {
    JsonNode label = line.outcomes().get("label");
    return label != null && label.isTextual() && !(cells && CsvLine.isNumber(label.textValue()))
        || line.outcomes().containsKey("tags");
  }

  /** Whether examples are read here, by the name of a file, or because it is a folder. */
  public static boolean areIn(Path file) {
    return ExampleLine.areIn(file) || Files.isDirectory(file);
  }

  /**
   * Reads a file, and no labels.
   *
   * @param asked the inputs of the models by name; not used for JSON
   * @throws InputException that names the example
   */
  public static LineExamples unlabelled(Path file, Map<String, ValueInfoProto> asked) {
    return unlabelled(file, List.of(), asked);
  }

  private static LineExamples unlabelled(
      Path file, List<String> classes, Map<String, ValueInfoProto> asked) {
    if (Files.isDirectory(file)) {
      ImageFolder folder = ImageFolder.read(file, classes);
      return new LineExamples(file, folder.examples(), null, folder.classes());
    }
    List<ExampleLine> lines = ExampleLine.read(file, LineInputs.features(asked));
    if (lines.isEmpty()) {
      throw new InputException(file + " holds no example");
    }
    String first = kind(lines.get(0));
    for (int i = 0; i < lines.size(); i++) {
      if (!kind(lines.get(i)).equals(first)) {
        throw new InputException(
            file
                + ": example "
                + (i + 1)
                + ": it has "
                + kind(lines.get(i))
                + ", and earlier ones have "
                + first);
      }
    }
    return new LineExamples(file, lines, null, List.of());
  }

  private static String kind(ExampleLine line) {
    if (line.text() != null || line.words() != null) {
      return line.text() != null ? "a text" : "tokens";
    }
    return line.image() != null ? "an image" : "numbers";
  }

  /** At most so many of them, evenly spread, without labels. */
  public LineExamples some(int count) {
    return new LineExamples(file, ActivationSource.spread(lines, count), null, classes);
  }

  /**
   * Where the names of the classes are from, for people.
   *
   * @param given the classes that the user named
   * @return null where the user named them, or they are numbers
   */
  public String origin(List<String> given) {
    if (classes.equals(given)) {
      return null;
    }
    boolean folders = Files.isDirectory(file) && classes.equals(ImageFolder.classes(file, given));
    return classes.size()
        + " classes, "
        + (folders
            ? "the folders of " + file + " in alphabetical order"
            : "in the order of the model's config.json")
        + ": "
        + classes.stream().limit(SHOWN).map(Names::quote).collect(Collectors.joining(", "))
        + (classes.size() > SHOWN ? ", …" : "");
  }

  /** How many classes a model tells apart by its first output, a row an example; 0 where it does not say. */
  public static long classesOf(OnnxModel model) {
    ValueInfoProto output = model.mainOutput();
    List<Dimension> dims =
        output == null ? List.of() : output.getType().getTensorType().getShape().getDimList();
    if (dims.isEmpty() || dims.size() > 2) {
      return 0;
    }
    long wide = dims.size() == 1 ? 1 : dims.get(1).getDimValue();
    return wide == 1 ? 2 : wide;
  }

  /**
   * Refuses folders that are not as many as the model's classes, whose order would say other labels.
   *
   * @param many {@linkplain #classesOf classes} of the model
   * @param given the classes that the user named
   */
  public void requireClasses(long many, List<String> given) {
    if (given.isEmpty()
        && Files.isDirectory(file)
        && !classes.isEmpty()
        && many > 0
        && classes.size() != many) {
      throw new InputException(
          file
              + " has folders for "
              + classes.size()
              + " classes, "
              + NearNames.list("", classes)
              + "; the model tells "
              + many
              + " apart, and data.classes (--classes) says which, in the order of its outputs");
    }
  }

  /** Whether they are texts, which may be cut into words. */
  public boolean areTexts() {
    return lines.get(0).text() != null || lines.get(0).words() != null;
  }

  /** Whether they are images. */
  public boolean areImages() {
    return lines.get(0).image() != null;
  }

  /**
   * The images, with the labels, as a model takes them.
   *
   * @param asked the models' inputs by name; empty for a module, which has one
   * @param processor how they become tensors
   * @param progress hears how many were read
   * @throws InputException that names the image which is none, or that the model takes none
   */
  Examples.Labelled images(
      Map<String, ValueInfoProto> asked, ImageProcessor processor, Progress progress) {
    Images images = readImages(asked, processor, progress);
    return new Examples.Labelled(
        List.of(
            new Examples.Input(
                images.input().name(),
                images.input().type(),
                images.shape(),
                new ComputedList<>(images.size(), images::tensor))),
        labels);
  }

  private Images readImages(
      Map<String, ValueInfoProto> asked, ImageProcessor processor, Progress progress) {
    List<Path> files = new ArrayList<>(lines.size());
    for (int i = 0; i < lines.size(); i++) {
      Path image = image(lines.get(i));
      if (!Files.isRegularFile(image)) {
        throw new InputException(file + ": example " + (i + 1) + ": there is no image " + image);
      }
      files.add(image);
    }
    ImageInput input =
        asked.isEmpty() ? ImageInput.OF_MODULES : ImageInput.of(List.copyOf(asked.values()));
    return new Images(files, new ImageTensors(processor, input), CpuThreads.get(), progress);
  }

  /** What each is made of; null of numbers. */
  List<ExampleSource> sources() {
    if (!areTexts() && !areImages()) {
      return null;
    }
    return lines.stream()
        .map(line -> new ExampleSource(text(line), areImages() ? image(line) : null))
        .toList();
  }

  private static String text(ExampleLine line) {
    if (line.words() != null) {
      return String.join(" ", line.words());
    }
    return line.second() == null ? line.text() : line.text() + "\n" + line.second();
  }

  private Path image(ExampleLine line) {
    try {
      Path folder = Files.isDirectory(file) ? file : file.toAbsolutePath().getParent();
      return folder.resolve(line.image()).normalize();
    } catch (InvalidPathException e) {
      throw new InputException(
          file + ": " + Names.quote(line.image()) + " is not a path: " + e.getReason(), e);
    }
  }

  /**
   * The tokens of the texts, or of each text with the second one that is read together with it.
   *
   * @throws InputException that names the text, where one has none
   */
  public List<Tokens> tokens(TextTokenizer tokenizer) {
    List<Tokens> tokens = new ArrayList<>(lines.size());
    for (ExampleLine line : lines) {
      tokens.add(
          line.words() == null
              ? tokenizer.encode(line.text(), line.second())
              : tokenizer.encode(line.words()));
      if (tokens.get(tokens.size() - 1).length() == 0) {
        throw new InputException(file + ": the text " + Names.quote(text(line)) + " has no tokens");
      }
    }
    return tokens;
  }

  /**
   * The labels as models give them: of words those of their first tokens, and none of all other tokens.
   *
   * @param tokens of the lines
   * @param notes is told of words whose labels are left out, for they are cut off or have no tokens
   * @return null where none is known
   */
  public Labels labels(List<Tokens> tokens, Consumer<String> notes) {
    if (!(labels instanceof Labels.TokenClasses words)) {
      return labels;
    }
    List<long[]> rows = new ArrayList<>(tokens.size());
    for (int i = 0; i < tokens.size(); i++) {
      long[] ofWords = words.rows().get(i);
      rows.add(
          IntStream.of(tokens.get(i).words())
              .mapToLong(word -> word < 0 ? Labels.Classes.NO_LABEL : ofWords[word])
              .toArray());
    }
    Labels result = new Labels.TokenClasses(rows);
    int left = words.known() - result.known();
    if (left > 0) {
      notes.accept(
          "of "
              + words.known()
              + " tags of "
              + file
              + " "
              + left
              + " are left out: their words are behind max-tokens, or the tokenizer makes nothing"
              + " of them");
    }
    return result;
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
   * Numbers or images as a model is fed them, without the labels.
   *
   * @param processor gives how images become tensors
   * @param progress hears how many images were read
   * @throws InputException that names the example
   */
  public ExampleTensors fed(
      OnnxModel model, Supplier<ImageProcessor> processor, Progress progress) {
    return areImages()
        ? ExampleTensors.ofImages(readImages(asked(model), processor.get(), progress))
        : RunHost.tensors(tensors(asked(model), MissingValues.areKnownTo(model)));
  }

  /**
   * Each text or image once, as it is there first with a label that is known, if it has one. Images are the same whose
   * files hold the same bytes.
   *
   * @param without others that are left out too; null for none
   */
  LineExamples distinct(LineExamples without) {
    List<Path> images = new ArrayList<>(images());
    if (without != null) {
      images.addAll(without.images());
    }
    SameFiles same = new SameFiles(images);
    Set<List<Object>> left = new HashSet<>();
    if (without != null) {
      without.lines.forEach(line -> left.add(without.identity(line, same)));
    }
    Map<List<Object>, Integer> kept = new LinkedHashMap<>();
    for (int i = 0; i < lines.size(); i++) {
      List<Object> identity = identity(lines.get(i), same);
      if (!left.contains(identity)) {
        kept.merge(identity, i, (before, now) -> isKnown(now) && !isKnown(before) ? now : before);
      }
    }
    int[] indices = kept.values().stream().mapToInt(Integer::intValue).toArray();
    return new LineExamples(
        file,
        IntStream.of(indices).mapToObj(lines::get).toList(),
        labels == null ? null : labels.of(indices),
        classes);
  }

  private boolean isKnown(int index) {
    return labels != null && labels.of(index).known(null) > 0;
  }

  private List<Path> images() {
    return areImages() ? lines.stream().map(this::image).toList() : List.of();
  }

  private List<Object> identity(ExampleLine line, SameFiles same) {
    return line.image() != null
        ? List.of(same.identity(image(line)))
        : Arrays.asList(line.text(), line.second(), line.words());
  }

  /** The labels of a file. */
  private record Reader(Path file, List<String> classes) {
    Labels labels(List<ExampleLine> lines, Recipe.Task task) {
      String key = key(lines);
      if (key == null) {
        return null;
      }
      if (key.equals("tags")) {
        return tags(lines, task);
      }
      int width = 0;
      List<double[]> rows = new ArrayList<>();
      boolean fractions = false;
      for (int i = 0; i < lines.size(); i++) {
        JsonNode given = lines.get(i).outcomes().get(key);
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

    /** The classes of words. */
    private Labels tags(List<ExampleLine> lines, Recipe.Task task) {
      if (task == Recipe.Task.REGRESSION) {
        throw new InputException(file + ": tags are classes, and numbers are to be learned");
      }
      List<long[]> rows = new ArrayList<>(lines.size());
      for (int i = 0; i < lines.size(); i++) {
        JsonNode given = lines.get(i).outcomes().get("tags");
        long[] row = new long[lines.get(i).words().size()];
        Arrays.fill(row, Labels.Classes.NO_LABEL);
        if (given != null && (!given.isArray() || given.size() != row.length)) {
          throw wrong(
              i,
              "tags "
                  + (given.isArray() ? "has " + given.size() + " entries" : "is no list")
                  + ", and there are "
                  + row.length
                  + " tokens; a tag for each is right, null where it is not known");
        }
        for (int k = 0; given != null && k < row.length; k++) {
          if (!given.get(k).isNull()) {
            row[k] = classOf(number(given.get(k), "tags", i), "tags", i);
            if (row[k] < 0 && row[k] != Labels.Classes.NO_LABEL) {
              throw wrong(
                  i,
                  "tags holds "
                      + row[k]
                      + "; classes are from 0 on, and "
                      + Labels.Classes.NO_LABEL
                      + " is none");
            }
          }
        }
        rows.add(row);
      }
      return new Labels.TokenClasses(rows);
    }

    /** Under which key the labels are; null where there are none. */
    private String key(List<ExampleLine> lines) {
      String key = null;
      for (int i = 0; i < lines.size(); i++) {
        for (String some : ExampleLine.OUTCOMES) {
          if (!lines.get(i).outcomes().containsKey(some)) {
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
      boolean named = key.equals("label") || key.equals("tags");
      if (given.isTextual() && named) {
        String word = given.textValue();
        int known = classes.indexOf(word);
        if (known < 0 && ExampleLine.areCells(file.toString()) && CsvLine.isNumber(word)) {
          return finite(Double.parseDouble(CsvLine.number(word)), word, key, line);
        }
        if (known < 0) {
          throw wrong(
              line,
              (key.equals("tags") ? "the tag " : "the label ")
                  + Names.quote(word)
                  + " is "
                  + (classes.isEmpty()
                      ? "a word; data.classes (--classes) says which words there are, in the order"
                          + " of the model's outputs, as id2label of its config.json"
                      : "none of the classes " + NearNames.list(word, classes)));
        }
        return known;
      }
      if (given.isBoolean()) {
        return given.booleanValue() ? 1 : 0;
      }
      Float word = key.equals("values") ? JsonNumbers.ofString(given.asText()) : null;
      double other = word == null ? Double.POSITIVE_INFINITY : word;
      return finite(given.isNumber() ? given.doubleValue() : other, given.toString(), key, line);
    }

    private double finite(double value, String given, String key, int line) {
      if (Double.isInfinite((float) value)) {
        throw wrong(line, key + " holds " + Names.quote(given) + ", which is no number");
      }
      return value;
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
        values[i] = classOf(row == null ? Double.NaN : row[i % width], key, i / width);
      }
      return new Labels.Classes(values, width);
    }

    /** The class that a number is; none for NaN. */
    private long classOf(double value, String key, int line) {
      if (Double.isNaN(value)) {
        return Labels.Classes.NO_LABEL;
      }
      if ((long) value != value) {
        throw wrong(line, key + " is " + value + "; classes are whole numbers");
      }
      return (long) value;
    }
  }
}
