package org.espalier.recipe;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.EnumSet;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Random;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsFile;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.train.Examples;
import org.espalier.train.Labels;

/**
 * The examples of a run, split by its seed: what is trained on, what chooses the best state, and what the
 * report measures never overlap.
 *
 * @param evaluationTexts for text models; else null
 * @param evaluationExamples for other models; else null
 */
record RunData(
    Examples training,
    Examples validation,
    ActivationSource calibration,
    List<String> evaluationTexts,
    Examples.Labelled evaluationExamples) {
  /** The report needs neighbours to compare. */
  private static final int LEAST_EVALUATION_TEXTS = 3;

  /** Of an example: an array of so many int64 is what Java can have. */
  private static final int MOST_VALUES = Integer.MAX_VALUE / 8;

  private static final Set<SafetensorsDtype> LABEL_TYPES =
      EnumSet.of(
          SafetensorsDtype.I64,
          SafetensorsDtype.I32,
          SafetensorsDtype.I16,
          SafetensorsDtype.I8,
          SafetensorsDtype.U8,
          SafetensorsDtype.BOOL,
          SafetensorsDtype.F32,
          SafetensorsDtype.F64);

  private static final String NEEDED =
      "examples are inputs, or for each input of the model a tensor of its name (F32, I64, I32, U8 or"
          + " BOOL, [N, …]), and, for losses with labels, labels (integers, BOOL, F32 or F64, [N]"
          + " or [N, …])";

  static RunData of(Recipe recipe, RunHost host) {
    return recipe.isForTexts() ? texts(recipe, host) : labelled(recipe, host);
  }

  /** Some of the labels; null where there are none, as of texts. */
  Labels labels() {
    return evaluationExamples == null ? null : evaluationExamples.labels();
  }

  /** What is learned from labels, in the words of {@code data.task}; null where there are none. */
  String task() {
    return labels() == null
        ? null
        : labels() instanceof Labels.Numbers ? "regression" : "classification";
  }

  /** Adds all that is trained on and measured to a digest. */
  void digest(MessageDigest sum) {
    for (Examples examples : new Examples[] {training, validation, evaluationExamples}) {
      if (examples instanceof Examples.Texts texts) {
        texts.ids().forEach(ids -> sum.update(longs(ids)));
      } else if (examples instanceof Examples.Labelled rows) {
        rows.digest(sum);
        if (rows.labels() instanceof Labels.Numbers numbers) {
          ByteBuffer bytes = ByteBuffer.allocate(4 * numbers.values().length + 4);
          bytes.putInt(numbers.width()).asFloatBuffer().put(numbers.values());
          sum.update(bytes.rewind());
        } else {
          Labels.Classes classes = (Labels.Classes) rows.labels();
          sum.update(longs(classes == null ? new long[0] : classes.values()));
          sum.update(longs(new long[] {classes == null ? 0 : classes.width()}));
        }
      }
    }
    if (evaluationTexts != null) {
      evaluationTexts.forEach(text -> sum.update((text + "\n").getBytes(StandardCharsets.UTF_8)));
    }
  }

  private static ByteBuffer longs(long[] values) {
    ByteBuffer bytes = ByteBuffer.allocate(8 * values.length + 8).putLong(values.length);
    bytes.asLongBuffer().put(values);
    return bytes.rewind();
  }

  private static RunData texts(Recipe recipe, RunHost host) {
    Recipe.DataSettings data = recipe.data();
    List<String> own =
        data.evaluationTexts() == null ? null : lines(host.file(data.evaluationTexts()));
    int heldOut = data.validation() + (own == null ? data.evaluation() : 0);
    List<String> all;
    if (data.wordNet()) {
      if (data.train() == 0) {
        throw new InputException(
            data.place() + ": data.train: missing; wordnet has more sentences than a run needs");
      }
      all = host.wordNet(data.texts(), Math.addExact(data.train(), heldOut));
    } else {
      all = lines(host.file(data.texts()));
      if (all.isEmpty()) {
        throw new InputException(data.place() + ": data.texts: " + data.texts() + " holds no text");
      }
    }
    // A text that occurs twice could be trained on and measured.
    all = new ArrayList<>(new LinkedHashSet<>(all));
    if (own != null) {
      all.removeAll(new LinkedHashSet<>(own));
    }
    Collections.shuffle(all, new Random(recipe.stages().seed()));
    int evaluation = own == null ? data.evaluation() : 0;
    int train = train(data, all.size(), heldOut, "different texts");
    List<String> training = all.subList(heldOut, heldOut + train);
    List<String> evaluationTexts = own == null ? List.copyOf(all.subList(0, evaluation)) : own;
    if (evaluationTexts.size() < LEAST_EVALUATION_TEXTS) {
      throw new InputException(
          data.place()
              + ": data: "
              + evaluationTexts.size()
              + " evaluation texts; at least "
              + LEAST_EVALUATION_TEXTS
              + " are needed");
    }
    List<String> calibration = training.subList(0, Math.min(data.calibration(), train));
    return new RunData(
        new Examples.Texts(host.tokens(training)),
        new Examples.Texts(host.tokens(all.subList(evaluation, heldOut))),
        host.calibration(List.copyOf(calibration)),
        evaluationTexts,
        null);
  }

  private static int train(Recipe.DataSettings data, int size, int heldOut, String what) {
    int left = size - heldOut;
    if (left < Math.max(1, data.train())) {
      throw new InputException(
          data.place()
              + ": data: there are "
              + size
              + " "
              + what
              + "; "
              + heldOut
              + " are held out, and "
              + (data.train() == 0 ? "at least 1 is" : data.train() + " are")
              + " wanted for training");
    }
    return data.train() == 0 ? left : data.train();
  }

  private static List<String> lines(Path file) {
    try {
      return Files.readString(file, StandardCharsets.UTF_8)
          .lines()
          .map(String::strip)
          .filter(line -> !line.isEmpty())
          .toList();
    } catch (CharacterCodingException e) {
      throw new InputException(file + " is not UTF-8 text", e);
    } catch (IOException e) {
      throw new InputException(file + " cannot be read: " + e.getMessage(), e);
    }
  }

  private static RunData labelled(Recipe recipe, RunHost host) {
    Recipe.DataSettings data = recipe.data();
    Examples.Labelled all = read(host.file(data.examples()), data.task());
    boolean unused =
        recipe.stages().stages().stream()
            .map(stage -> stage.training().objective())
            .allMatch(objective -> objective.output() > 0 && objective.labels() == 0);
    // Classes may be of another output than the one that is followed; numbers are measured.
    if (unused && all.labels() instanceof Labels.Classes) {
      all = new Examples.Labelled(all.inputs(), null);
    }
    int heldOut = data.validation() + data.evaluation();
    int train = train(data, all.size(), heldOut, "examples");
    List<Integer> order = new ArrayList<>();
    for (int i = 0; i < all.size(); i++) {
      order.add(i);
    }
    Collections.shuffle(order, new Random(recipe.stages().seed()));
    Examples.Labelled training = pick(all, order.subList(heldOut, heldOut + train));
    List<Integer> calibration =
        order.subList(heldOut, heldOut + Math.min(train, data.calibration()));
    return new RunData(
        training,
        pick(all, order.subList(data.evaluation(), heldOut)),
        host.calibration(pick(all, calibration)),
        null,
        pick(all, order.subList(0, data.evaluation())));
  }

  private static Examples.Labelled pick(Examples.Labelled all, List<Integer> indices) {
    List<Examples.Input> inputs = new ArrayList<>();
    for (Examples.Input input : all.inputs()) {
      List<byte[]> rows = indices.stream().map(input.rows()::get).toList();
      inputs.add(new Examples.Input(input.name(), input.type(), input.shape(), rows));
    }
    return new Examples.Labelled(
        inputs,
        all.labels() == null
            ? null
            : all.labels().of(indices.stream().mapToInt(Integer::intValue).toArray()));
  }

  /**
   * Reads {@code inputs} or, where there is no such tensor, one for each input of the model, and {@code
   * labels} where there are any.
   */
  static Examples.Labelled read(Path path, Recipe.Task task) {
    try (SafetensorsFile file = SafetensorsFile.open(path)) {
      List<Examples.Input> inputs = new ArrayList<>();
      TensorInfo only = file.tensor("inputs");
      if (only != null) {
        inputs.add(input(file, only, null));
      } else {
        for (TensorInfo tensor : file.tensors()) {
          if (!tensor.name().equals("labels")) {
            inputs.add(input(file, tensor, tensor.name()));
          }
        }
      }
      if (inputs.isEmpty()) {
        throw new InputException(path + ": there is no tensor inputs; " + NEEDED);
      }
      int n = inputs.get(0).rows().size();
      for (Examples.Input input : inputs) {
        if (input.rows().size() != n) {
          throw new InputException(
              path
                  + ": "
                  + inputs.get(0).name()
                  + " has "
                  + n
                  + " examples, "
                  + input.name()
                  + " "
                  + input.rows().size());
        }
      }
      return new Examples.Labelled(
          inputs, file.tensor("labels") == null ? null : labels(file, n, task));
    }
  }

  private static Examples.Input input(SafetensorsFile file, TensorInfo tensor, String name) {
    String what = file.path() + ": " + tensor.name() + " ";
    if (!Examples.Input.TYPES.contains(tensor.dtype())) {
      throw new InputException(what + "is " + tensor.dtype() + "; " + NEEDED);
    }
    if (tensor.rank() < (name == null ? 2 : 1)) {
      throw new InputException(what + tensor.shape() + "; [N, …] is needed");
    }
    if (tensor.elements() == 0 || tensor.elements() / tensor.shape().get(0) > MOST_VALUES) {
      throw new InputException(
          what
              + tensor.shape()
              + "; at least one example of 1 to "
              + MOST_VALUES
              + " values is needed");
    }
    int n = Math.toIntExact(tensor.shape().get(0));
    ByteBuffer row = ByteBuffer.allocateDirect((int) (tensor.bytes() / n));
    List<byte[]> rows = new ArrayList<>(n);
    for (int i = 0; i < n; i++) {
      file.read(tensor, (long) row.capacity() * i, row.clear());
      byte[] bytes = new byte[row.capacity()];
      row.flip().get(bytes);
      if (tensor.dtype() == SafetensorsDtype.F32) {
        checkFinite(file, bytes, i);
      }
      rows.add(bytes);
    }
    return new Examples.Input(name, tensor.dtype(), tensor.shape().subList(1, tensor.rank()), rows);
  }

  private static void checkFinite(SafetensorsFile file, byte[] row, int index) {
    FloatBuffer values = ByteBuffer.wrap(row).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer();
    while (values.hasRemaining()) {
      float value = values.get();
      if (!Float.isFinite(value)) {
        throw new InputException(
            file.path() + ": example " + (index + 1) + " has the value " + value);
      }
    }
  }

  private static Labels labels(SafetensorsFile file, int n, Recipe.Task task) {
    TensorInfo labels = file.tensor("labels");
    String what = file.path() + ": labels " + labels.shape();
    if (labels.rank() < 1
        || labels.shape().get(0) != n
        || labels.elements() == 0
        || labels.elements() > MOST_VALUES) {
      throw new InputException(what + " for " + n + " inputs; [N] or [N, …] is needed");
    }
    int width = (int) (labels.elements() / n);
    double[] values = numbers(file, labels);
    for (int i = 0; i < values.length; i++) {
      // NaN says in floats what -100 says in classes.
      if (Double.isInfinite((float) values[i])) {
        throw new InputException(
            file.path() + ": the label of example " + (i / width + 1) + " is " + values[i]);
      }
    }
    boolean integers =
        labels.dtype() != SafetensorsDtype.F32 && labels.dtype() != SafetensorsDtype.F64;
    boolean binary =
        Arrays.stream(values)
            .allMatch(v -> v == 0 || v == 1 || Double.isNaN(v) || v == Labels.Classes.NO_LABEL);
    if (task == Recipe.Task.REGRESSION || task == Recipe.Task.AUTO && !integers && !binary) {
      if (labels.rank() > 2) {
        throw new InputException(what + " are numbers; [N] or [N, values] is needed");
      }
      return numbers(values, width);
    }
    return classes(file, values, width);
  }

  private static Labels numbers(double[] values, int width) {
    float[] floats = new float[values.length];
    for (int i = 0; i < floats.length; i++) {
      floats[i] = (float) values[i];
    }
    return new Labels.Numbers(floats, width);
  }

  private static Labels classes(SafetensorsFile file, double[] values, int width) {
    long[] classes = new long[values.length];
    for (int i = 0; i < classes.length; i++) {
      boolean none = Double.isNaN(values[i]);
      classes[i] = none ? Labels.Classes.NO_LABEL : (long) values[i];
      if (!none && classes[i] != values[i]) {
        throw new InputException(
            file.path()
                + ": the label of example "
                + (i / width + 1)
                + " is "
                + values[i]
                + "; classes are whole numbers");
      }
    }
    return new Labels.Classes(classes, width);
  }

  private static double[] numbers(SafetensorsFile file, TensorInfo labels) {
    if (!LABEL_TYPES.contains(labels.dtype())) {
      throw new InputException(file.path() + ": labels is " + labels.dtype() + "; " + NEEDED);
    }
    ByteBuffer bytes = ByteBuffer.allocateDirect(Math.toIntExact(labels.bytes()));
    file.read(labels, 0, bytes);
    bytes.flip().order(ByteOrder.LITTLE_ENDIAN);
    double[] values = new double[Math.toIntExact(labels.elements())];
    for (int i = 0; i < values.length; i++) {
      values[i] =
          switch (labels.dtype()) {
            case I64 -> bytes.getLong();
            case I32 -> bytes.getInt();
            case I16 -> bytes.getShort();
            case U8 -> Byte.toUnsignedInt(bytes.get());
            case F64 -> bytes.getDouble();
            case F32 -> bytes.getFloat();
            default -> bytes.get(); // I8, BOOL
          };
    }
    return values;
  }
}
