package org.espalier.train;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.LongBuffer;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.TreeSet;
import java.util.function.DoubleSupplier;
import java.util.stream.IntStream;
import java.util.stream.LongStream;
import org.espalier.InputException;
import org.espalier.format.ComputedList;
import org.espalier.format.onnx.AttentionMask;
import org.espalier.format.onnx.TextInput;
import org.espalier.format.safetensors.SafetensorsDtype;

/** Training or validation examples, in memory and immutable. */
public sealed interface Examples {
  /** How many there are, at least 1. */
  int size();

  /** Tokens of a text; 1 for examples of one shape. Batches are made of examples of like length. */
  int length(int index);

  /** The highest token of a text; 0 for examples of one shape. */
  long highest(int index);

  /** Whether they are texts. */
  boolean areTexts();

  /**
   * Texts as tokens, for models that have {@link TextInput}s.
   *
   * @param ids vocabulary indices of each text with the special tokens, without padding
   * @param causal whether the label of a token is the one that follows it, as causal language models learn; else
   *     there are no labels
   */
  record Texts(List<long[]> ids, boolean causal) implements Examples {
    public Texts {
      ids = List.copyOf(ids);
      if (ids.isEmpty()) {
        throw new InputException("there are no texts to train on");
      }
      for (int i = 0; i < ids.size(); i++) {
        if (ids.get(i).length == 0) {
          throw new InputException("text " + (i + 1) + " has no tokens");
        }
      }
    }

    /** Texts without labels. */
    public Texts(List<long[]> ids) {
      this(ids, false);
    }

    /**
     * For each token of some texts the one that follows it: rows that are padded to the longest, without a label
     * where none follows.
     */
    Labels.Classes following(int[] texts, int longest) {
      long[] labels = new long[texts.length * longest];
      Arrays.fill(labels, Labels.Classes.NO_LABEL);
      for (int i = 0; i < texts.length; i++) {
        long[] tokens = ids.get(texts[i]);
        System.arraycopy(tokens, 1, labels, i * longest, tokens.length - 1);
      }
      return new Labels.Classes(labels, longest);
    }

    /** Which values of rows that are padded to the longest are of a token. */
    boolean[] attended(int[] texts, int longest) {
      boolean[] attended = new boolean[texts.length * longest];
      for (int i = 0; i < texts.length; i++) {
        Arrays.fill(attended, i * longest, i * longest + length(texts[i]), true);
      }
      return attended;
    }

    @Override
    public int size() {
      return ids.size();
    }

    @Override
    public int length(int index) {
      return ids.get(index).length;
    }

    @Override
    public long highest(int index) {
      return LongStream.of(ids.get(index)).max().orElseThrow();
    }

    @Override
    public boolean areTexts() {
      return true;
    }
  }

  /**
   * What one input of a model is fed.
   *
   * @param name of the input; null for the only one that a model has
   * @param type one of {@link #TYPES}
   * @param shape of an example, without the batch; {@link #OPEN} in place of a first dimension that each example has of
   *     its own: the tokens of a text
   * @param rows the bytes of each example, row-major and little-endian; {@linkplain ComputedList computed} ones have all
   *     the size of the first
   */
  record Input(String name, SafetensorsDtype type, List<Long> shape, List<byte[]> rows) {
    /** The types that an input can have, and what ONNX calls them. */
    public static final Map<SafetensorsDtype, DataType> TYPES =
        Map.of(
            SafetensorsDtype.F64, DataType.DOUBLE,
            SafetensorsDtype.F32, DataType.FLOAT,
            SafetensorsDtype.F16, DataType.FLOAT16,
            SafetensorsDtype.BF16, DataType.BFLOAT16,
            SafetensorsDtype.I64, DataType.INT64,
            SafetensorsDtype.I32, DataType.INT32,
            SafetensorsDtype.U8, DataType.UINT8,
            SafetensorsDtype.BOOL, DataType.BOOL);

    /** Of a first dimension that each example has of its own. Batches are padded there with zeros. */
    public static final long OPEN = -1;

    public Input {
      Objects.requireNonNull(type, "type");
      shape = List.copyOf(shape);
      rows = ComputedList.orCopy(rows);
      if (!TYPES.containsKey(type)) {
        throw new InputException(
            "an input of " + type + "; models are fed " + new TreeSet<>(TYPES.keySet()));
      }
      long bytes = step(type, shape);
      int looked = rows instanceof ComputedList ? Math.min(1, rows.size()) : rows.size();
      for (int i = 0; i < looked; i++) {
        int own = rows.get(i).length;
        if (isOpen(shape) ? own == 0 || own % bytes != 0 : own != bytes) {
          throw new InputException(
              "example "
                  + (i + 1)
                  + " has "
                  + own
                  + " bytes; "
                  + type
                  + " "
                  + shape
                  + " needs "
                  + bytes);
        }
      }
    }

    private static boolean isOpen(List<Long> shape) {
      return !shape.isEmpty() && shape.get(0) == OPEN;
    }

    /** The bytes of an example or, of one that is open, of one step along its first dimension. */
    private static long step(SafetensorsDtype type, List<Long> shape) {
      return type.bytes(shape.stream().skip(isOpen(shape) ? 1 : 0).reduce(1L, Math::multiplyExact));
    }

    /** Whether each example has a first dimension of its own. */
    public boolean isOpen() {
      return isOpen(shape);
    }

    /** The first dimension of an example that is open; 1 for one that is not. */
    public int length(int example) {
      return isOpen() ? Math.toIntExact(rows.get(example).length / step(type, shape)) : 1;
    }

    /** The shape of one example. */
    public List<Long> shape(int example) {
      if (!isOpen()) {
        return shape;
      }
      List<Long> own = new ArrayList<>(shape);
      own.set(0, (long) length(example));
      return own;
    }

    /** The largest value of an example in magnitude, NaN left out; 0 for other types than F64, F32 and BF16. */
    double largest(int example) {
      ByteBuffer row = ByteBuffer.wrap(rows.get(example)).order(ByteOrder.LITTLE_ENDIAN);
      DoubleSupplier next =
          switch (type) {
            case F64 -> row::getDouble;
            case F32 -> row::getFloat;
            case BF16 -> () -> Float.intBitsToFloat(row.getShort() << 16);
            default -> null;
          };
      double largest = 0;
      while (next != null && row.hasRemaining()) {
        double value = next.getAsDouble();
        largest = Math.abs(value) > Math.abs(largest) ? value : largest;
      }
      return largest;
    }
  }

  /**
   * Examples of one shape, or texts as tokens for models with one output a text or one a token, each with labels where the
   * objective uses them.
   *
   * @param inputs of as many examples each
   * @param labels of as many, or null where the objective uses none
   */
  record Labelled(List<Input> inputs, Labels labels) implements Examples {
    public Labelled {
      inputs = List.copyOf(inputs);
      if (inputs.isEmpty() || inputs.get(0).rows().isEmpty()) {
        throw new InputException("there are no examples to train on");
      }
      int n = inputs.get(0).rows().size();
      for (Input input : inputs) {
        if (input.name() == null && inputs.size() > 1) {
          throw new InputException("inputs of a model with several need names");
        }
        if (input.rows().size() != n) {
          throw new InputException(
              input.rows().size() + " examples of the input " + input.name() + ", not " + n);
        }
      }
      Input first = inputs.stream().filter(Input::isOpen).findFirst().orElse(null);
      for (Input input : inputs) {
        for (int i = 0; input.isOpen() && i < n; i++) {
          if (input.length(i) != first.length(i)) {
            throw new InputException(
                "of example "
                    + (i + 1)
                    + " the input "
                    + first.name()
                    + " has "
                    + first.length(i)
                    + " values, "
                    + input.name()
                    + " "
                    + input.length(i));
          }
        }
      }
      if (labels != null && labels.size() != n) {
        throw new InputException(labels.size() + " labels for " + n + " examples");
      }
      if (labels instanceof Labels.TokenClasses tokens) {
        checkTokens(tokens.rows(), first);
      }
    }

    private static void checkTokens(List<long[]> labels, Input open) {
      for (int i = 0; i < labels.size(); i++) {
        int tokens = open == null ? 1 : open.length(i);
        if (labels.get(i).length != tokens || open == null) {
          throw new InputException(
              "example "
                  + (i + 1)
                  + " has labels of "
                  + labels.get(i).length
                  + " tokens, and "
                  + (open == null
                      ? "no input with as many as each example has"
                      : tokens + " tokens"));
        }
      }
    }

    /**
     * Examples for a model with one float32 input.
     *
     * @param values one array an example, row-major
     * @param shape without the batch
     */
    public Labelled(List<float[]> values, List<Long> shape, Labels labels) {
      this(List.of(new Input(null, SafetensorsDtype.F32, shape, bytes(values))), labels);
    }

    private static List<byte[]> bytes(List<float[]> values) {
      List<byte[]> rows = new ArrayList<>(values.size());
      for (float[] row : values) {
        ByteBuffer bytes = ByteBuffer.allocate(4 * row.length).order(ByteOrder.LITTLE_ENDIAN);
        bytes.asFloatBuffer().put(row);
        rows.add(bytes.array());
      }
      return rows;
    }

    /**
     * What an input of a model is fed.
     *
     * @param model names of all its inputs
     * @throws InputException where the examples have no such input
     */
    public Input input(String name, List<String> model) {
      if (inputs.get(0).name() == null) {
        if (model.size() > 1) {
          throw new InputException(
              "the model has the inputs "
                  + model
                  + "; its examples are tensors of these names, not one called inputs");
        }
        return inputs.get(0);
      }
      return inputs.stream()
          .filter(i -> i.name().equals(name))
          .findFirst()
          .orElseThrow(
              () ->
                  new InputException(
                      "the model has the inputs "
                          + model
                          + "; among the examples, "
                          + inputs.stream().map(Input::name).toList()
                          + ", there is no "
                          + name));
    }

    /**
     * Whether the rows of some examples' logits are about something: an input {@code attention_mask} that has as
     * many values as an example has rows, more than one, leaves out those where it is 0.
     *
     * @return a value for each row of each example; null where there is no such input: all are
     */
    public boolean[] attended(int[] examples, int rows) {
      Input mask =
          inputs.stream()
              .filter(i -> AttentionMask.INPUT.equals(i.name()) && !i.isOpen())
              .filter(i -> rows > 1 && i.type().bytes(rows) == i.rows().get(0).length)
              .findFirst()
              .orElse(null);
      if (mask == null) {
        return null;
      }
      boolean[] attended = new boolean[examples.length * rows];
      for (int i = 0; i < examples.length; i++) {
        ByteBuffer row = ByteBuffer.wrap(mask.rows().get(examples[i]));
        AttentionMask.read(row, attended, i * rows, rows);
      }
      return attended;
    }

    /** The same for all examples. */
    public boolean[] attended(int rows) {
      return attended(IntStream.range(0, size()).toArray(), rows);
    }

    /**
     * Whether the tokens of some texts are about something, in rows that are padded to the longest: those that are no
     * padding and that an input {@code attention_mask} does not leave out.
     */
    boolean[] attendedTokens(int[] texts, int longest) {
      Input mask =
          inputs.stream()
              .filter(i -> AttentionMask.INPUT.equals(i.name()) && i.isOpen())
              .findFirst()
              .orElse(null);
      boolean[] attended = new boolean[texts.length * longest];
      for (int i = 0; i < texts.length; i++) {
        int length = length(texts[i]);
        if (mask == null) {
          Arrays.fill(attended, i * longest, i * longest + length, true);
        } else {
          ByteBuffer row = ByteBuffer.wrap(mask.rows().get(texts[i]));
          AttentionMask.read(row, attended, i * longest, length);
        }
      }
      return attended;
    }

    /** The labels of some examples, those of tokens in rows that are padded to the longest; null where there are none. */
    Labels labels(int[] examples, int longest) {
      Labels some = labels == null ? null : labels.of(examples);
      return some instanceof Labels.TokenClasses tokens ? tokens.padded(longest) : some;
    }

    /** Adds the inputs to a digest. */
    public void digest(MessageDigest sum) {
      for (Input input : inputs) {
        String what = input.name() + " " + input.type() + " " + input.shape() + "\n";
        sum.update(what.getBytes(StandardCharsets.UTF_8));
        for (byte[] row : input.rows()) {
          if (input.isOpen()) {
            sum.update(ByteBuffer.allocate(Integer.BYTES).putInt(0, row.length));
          }
          sum.update(row);
        }
      }
    }

    @Override
    public int size() {
      return inputs.get(0).rows().size();
    }

    @Override
    public int length(int index) {
      return inputs.stream().mapToInt(input -> input.length(index)).max().orElseThrow();
    }

    @Override
    public long highest(int index) {
      long highest = 0;
      for (Input input : inputs) {
        if (input.isOpen() && TextInput.INPUT_IDS.inputName().equals(input.name())) {
          LongBuffer ids =
              ByteBuffer.wrap(input.rows().get(index))
                  .order(ByteOrder.LITTLE_ENDIAN)
                  .asLongBuffer();
          while (ids.hasRemaining()) {
            highest = Math.max(highest, ids.get());
          }
        }
      }
      return highest;
    }

    @Override
    public boolean areTexts() {
      return inputs.stream().anyMatch(Input::isOpen);
    }
  }
}
