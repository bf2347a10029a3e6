package org.espalier.recipe;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Random;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsFile;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.train.Examples;

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

  /** Of an example: a buffer of so many float32 is what Java can have. */
  private static final int MOST_VALUES = Integer.MAX_VALUE / 4;

  static RunData of(Recipe recipe, RunHost host) {
    return recipe.isForTexts() ? texts(recipe, host) : labelled(recipe, host);
  }

  /** Adds all that is trained on and measured to a digest. */
  void digest(MessageDigest sum) {
    for (Examples examples : new Examples[] {training, validation, evaluationExamples}) {
      if (examples instanceof Examples.Texts texts) {
        texts.ids().forEach(ids -> sum.update(longs(ids)));
      } else if (examples instanceof Examples.Labelled rows) {
        for (float[] row : rows.values()) {
          ByteBuffer bytes = ByteBuffer.allocate(4 * row.length);
          bytes.asFloatBuffer().put(row);
          sum.update(bytes);
        }
        sum.update(longs(rows.labels() == null ? new long[0] : rows.labels()));
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
    Examples.Labelled all = read(host.file(data.examples()));
    if (recipe.stages().stages().stream().allMatch(s -> s.training().objective().output() > 0)) {
      all = new Examples.Labelled(all.values(), all.shape(), null);
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
    return new Examples.Labelled(
        indices.stream().map(all.values()::get).toList(),
        all.shape(),
        all.labels() == null ? null : indices.stream().mapToLong(i -> all.labels()[i]).toArray());
  }

  /** Reads {@code inputs} and, where there are any, {@code labels}. */
  static Examples.Labelled read(Path path) {
    try (SafetensorsFile file = SafetensorsFile.open(path)) {
      TensorInfo inputs = tensor(file, "inputs", SafetensorsDtype.F32);
      if (inputs.rank() < 2) {
        throw new InputException(path + ": inputs " + inputs.shape() + "; [N, …] is needed");
      }
      if (inputs.elements() == 0 || inputs.elements() / inputs.shape().get(0) > MOST_VALUES) {
        throw new InputException(
            path
                + ": inputs "
                + inputs.shape()
                + "; at least one example of 1 to "
                + MOST_VALUES
                + " values is needed");
      }
      int n = Math.toIntExact(inputs.shape().get(0));
      int width = (int) (inputs.elements() / n);
      long[] classes = file.tensor("labels") == null ? null : labels(file, n);
      List<float[]> values = new ArrayList<>(n);
      for (int i = 0; i < n; i++) {
        ByteBuffer row = ByteBuffer.allocateDirect(4 * width).order(ByteOrder.LITTLE_ENDIAN);
        file.read(inputs, 4L * width * i, row);
        float[] floats = new float[width];
        row.flip().order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(floats);
        for (float f : floats) {
          if (!Float.isFinite(f)) {
            throw new InputException(path + ": example " + (i + 1) + " has the value " + f);
          }
        }
        values.add(floats);
      }
      return new Examples.Labelled(values, inputs.shape().subList(1, inputs.rank()), classes);
    }
  }

  private static long[] labels(SafetensorsFile file, int n) {
    TensorInfo labels = tensor(file, "labels", SafetensorsDtype.I64);
    if (labels.rank() != 1 || labels.elements() != n) {
      throw new InputException(
          file.path() + ": labels " + labels.shape() + " for " + n + " inputs; [N] is needed");
    }
    ByteBuffer bytes = ByteBuffer.allocateDirect(8 * n).order(ByteOrder.LITTLE_ENDIAN);
    file.read(labels, 0, bytes);
    long[] classes = new long[n];
    bytes.flip().order(ByteOrder.LITTLE_ENDIAN).asLongBuffer().get(classes);
    return classes;
  }

  private static TensorInfo tensor(SafetensorsFile file, String name, SafetensorsDtype dtype) {
    TensorInfo info = file.tensor(name);
    if (info == null || info.dtype() != dtype) {
      throw new InputException(
          file.path()
              + ": "
              + (info == null ? "there is no tensor " + name : name + " is " + info.dtype())
              + "; examples are inputs (F32, [N, …]) and, for losses with labels, labels (I64,"
              + " [N])");
    }
    return info;
  }
}
