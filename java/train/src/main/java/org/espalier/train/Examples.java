package org.espalier.train;

import java.util.List;
import java.util.Objects;
import org.espalier.InputException;

/** Training or validation examples, in memory and immutable. */
public sealed interface Examples {
  /** How many there are, at least 1. */
  int size();

  /** Tokens of a text; 1 for examples of one shape. Batches are made of examples of like length. */
  int length(int index);

  /**
   * Texts as tokens, for models with the inputs {@code input_ids}, {@code attention_mask} and {@code
   * token_type_ids}.
   *
   * @param ids vocabulary indices of each text with the special tokens, without padding
   */
  record Texts(List<long[]> ids) implements Examples {
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

    @Override
    public int size() {
      return ids.size();
    }

    @Override
    public int length(int index) {
      return ids.get(index).length;
    }
  }

  /**
   * Examples of one shape with a label each, for models with one float32 input [batch, shape…].
   *
   * @param values one array an example, row-major
   * @param shape without the batch
   * @param labels one a row, or null where the objective uses none
   */
  record Labelled(List<float[]> values, List<Long> shape, long[] labels) implements Examples {
    public Labelled {
      values = List.copyOf(values);
      shape = List.copyOf(shape);
      Objects.requireNonNull(values, "values");
      long elements = shape.stream().reduce(1L, Math::multiplyExact);
      if (values.isEmpty()) {
        throw new InputException("there are no examples to train on");
      }
      for (int i = 0; i < values.size(); i++) {
        if (values.get(i).length != elements) {
          throw new InputException(
              "example "
                  + (i + 1)
                  + " has "
                  + values.get(i).length
                  + " values; the shape "
                  + shape
                  + " needs "
                  + elements);
        }
      }
      if (labels != null && labels.length != values.size()) {
        throw new InputException(labels.length + " labels for " + values.size() + " examples");
      }
    }

    @Override
    public int size() {
      return values.size();
    }

    @Override
    public int length(int index) {
      return 1;
    }
  }
}
