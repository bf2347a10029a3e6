package org.espalier.transformers;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import org.espalier.format.Float8;
import org.espalier.format.HalfFloats;
import org.espalier.format.safetensors.SafetensorsDtype;

/**
 * A checkpoint whose linear layers lie as GPTQ, AWQ or fp8 publish them, packed as those who write them do, beside one of the
 * floats that they stand for.
 */
public final class PublishedLayouts {
  /** How words hold integers. */
  enum Words {
    GPTQ,
    GPTQ_V2,
    AWQ
  }

  /**
   * @param group how many inputs share a scale; −1 for all
   * @param symmetric whether zero is the middle everywhere
   * @param scattered whether inputs of a group lie anywhere
   */
  record Integers(Words words, int bits, int group, boolean symmetric, boolean scattered) {
    String settings() {
      return words == Words.AWQ
          ? """
            "quantization_config": {"quant_method": "awq", "bits": %d, "group_size": %d,
             "zero_point": true, "version": "gemm", "modules_to_not_convert": ["lm_head"]}"""
              .formatted(bits, group)
          : """
            "quantization_config": {"quant_method": "gptq", "bits": %d, "group_size": %d,
             "sym": %s, "desc_act": %s, "damp_percent": 0.1, "checkpoint_format": "%s",
             "dynamic": {"-:lm_head": {}}}"""
              .formatted(
                  bits, group, symmetric, scattered, words == Words.GPTQ ? "gptq" : "gptq_v2");
    }
  }

  /** Which outputs a word of AWQ holds, from the lowest bits on. */
  private static final int[] AWQ_ORDER = {0, 2, 4, 6, 1, 3, 5, 7};

  /** The layers as they are published. */
  final SmallCheckpoint packed = new SmallCheckpoint(0, SafetensorsDtype.F32);

  /** Weights of float32 that equal them. */
  final SmallCheckpoint plain = new SmallCheckpoint(0, SafetensorsDtype.F32);

  private final Random random = new Random(7);

  PublishedLayouts(SmallCheckpoint model) {
    packed.addAll(model);
    plain.addAll(model);
  }

  /**
   * Writes a language model of {@code SmallLanguage}'s words.
   *
   * @param method gptq, awq or fp8
   * @param floats the folder of the floats that it stands for
   */
  public static void writeLanguageModel(Path folder, int words, String method, Path floats)
      throws IOException {
    PublishedLayouts made = new PublishedLayouts(SmallCheckpoint.languageModel(words, 64, 96, 2));
    Integers how =
        switch (method) {
          case "gptq" -> new Integers(Words.GPTQ, 4, 32, false, true);
          case "awq" -> new Integers(Words.AWQ, 4, 32, false, false);
          default -> null;
        };
    for (String layer : made.layers()) {
      if (how == null) {
        made.floats(layer, 48, 32, SafetensorsDtype.BF16, false);
      } else {
        made.integers(layer, how);
      }
    }
    String config =
        """
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64,
         "intermediate_size": 96, "vocab_size": %d, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 64%s}
        """;
    String settings = how == null ? ofBlocks(48, 32) : how.settings();
    made.packed.write(folder, config.formatted(words, ", " + settings));
    made.plain.write(floats, config.formatted(words, ""));
  }

  static String ofBlocks(int rows, int columns) {
    return """
           "quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic",
            "fmt": "e4m3", "weight_block_size": [%d, %d]}"""
        .formatted(rows, columns);
  }

  /** The linear layers of blocks. */
  List<String> layers() {
    return plain.matrices().stream()
        .filter(name -> name.contains("_proj.") || name.contains(".c_"))
        .map(name -> name.substring(0, name.lastIndexOf('.')))
        .toList();
  }

  /** Packs a layer. Its weight is [in, out] where its name is one of GPT-2's. */
  void integers(String layer, Integers how) {
    boolean turned = layer.contains(".c_");
    List<Long> shape = plain.shape(layer + ".weight");
    int out = shape.get(turned ? 1 : 0).intValue();
    int in = shape.get(turned ? 0 : 1).intValue();
    float[] weight = plain.get(layer + ".weight");
    int group = how.group == -1 ? in : how.group;
    int groups = (in + group - 1) / group;
    List<Integer> places = new ArrayList<>();
    for (int i = 0; i < in; i++) {
      places.add(i);
    }
    if (how.scattered) {
      Collections.shuffle(places, random);
    }
    int[] groupOf = new int[in];
    for (int i = 0; i < in; i++) {
      groupOf[places.get(i)] = i / group;
    }
    int largest = (1 << how.bits) - 1;
    short[] scales = new short[groups * out];
    int[][] zeros = new int[groups][out];
    int[][] integers = new int[in][out];
    float[] made = new float[weight.length];
    for (int o = 0; o < out; o++) {
      for (int g = 0; g < groups; g++) {
        // A group of every seventh output has no weights below zero, and 0 as its zero.
        double low = !how.symmetric && (o + g) % 7 == 0 ? 0 : -1.6 - random.nextDouble();
        double high = how.symmetric ? -low : 1.5 + random.nextDouble();
        short scale = HalfFloats.toFloat16((float) ((high - low) / Math.sqrt(in) / largest));
        scales[g * out + o] = scale;
        zeros[g][o] =
            how.symmetric
                ? 1 << how.bits - 1
                : (int) Math.round(-low / Math.sqrt(in) / HalfFloats.ofFloat16(scale));
      }
      for (int i = 0; i < in; i++) {
        int g = groupOf[i];
        int at = turned ? i * out + o : o * in + i;
        double scale = HalfFloats.ofFloat16(scales[g * out + o]);
        long q = Math.round(weight[at] / scale) + zeros[g][o];
        integers[i][o] = (int) Math.max(0, Math.min(largest, q));
        made[at] = (float) ((integers[i][o] - zeros[g][o]) * scale);
      }
    }
    plain.set(layer + ".weight", made);
    packed.remove(layer + ".weight");
    int perWord = 32 / how.bits;
    int[] zeroWords;
    if (how.words == Words.AWQ) {
      words(layer + ".qweight", interleaved(integers), in, out / perWord);
      zeroWords = interleaved(zeros);
    } else {
      int[] words = new int[in / perWord * out];
      for (int i = 0; i < in; i++) {
        for (int o = 0; o < out; o++) {
          words[i / perWord * out + o] |= integers[i][o] << how.bits * (i % perWord);
        }
      }
      words(layer + ".qweight", words, in / perWord, out);
      zeroWords = new int[groups * out / perWord];
      for (int g = 0; g < groups; g++) {
        for (int o = 0; o < out; o++) {
          int at = (g * out + o) / perWord;
          zeroWords[at] |= zeros[g][o] << how.bits * (o % perWord);
        }
      }
      for (int i = 0; how.words == Words.GPTQ && i < zeroWords.length; i++) {
        zeroWords[i] -= how.bits == 4 ? 0x11111111 : 0x01010101;
      }
      words(layer + ".g_idx", groupOf, in);
    }
    words(layer + ".qzeros", zeroWords, groups, out / perWord);
    halves(layer + ".scales", SafetensorsDtype.F16, scales, groups, out);
  }

  private static int[] interleaved(int[][] rows) {
    int columns = rows[0].length / 8;
    int[] words = new int[rows.length * columns];
    for (int r = 0; r < rows.length; r++) {
      for (int c = 0; c < columns; c++) {
        for (int k = 0; k < 8; k++) {
          words[r * columns + c] |= rows[r][8 * c + AWQ_ORDER[k]] << 4 * k;
        }
      }
    }
    return words;
  }

  /**
   * Rounds a layer to floats of 8 bits with a scale for each block.
   *
   * @param scaleType of scales, F32 or BF16
   * @param powers whether scales are powers of two
   */
  void floats(String layer, int rows, int columns, SafetensorsDtype scaleType, boolean powers) {
    List<Long> shape = plain.shape(layer + ".weight");
    int out = shape.get(0).intValue();
    int in = shape.get(1).intValue();
    int down = (out + rows - 1) / rows;
    int across = (in + columns - 1) / columns;
    float[] weight = plain.get(layer + ".weight").clone();
    float[] scales = new float[down * across];
    for (int o = 0; o < out; o++) {
      for (int i = 0; i < in; i++) {
        int b = o / rows * across + i / columns;
        // Blocks differ more than those of random weights do.
        scales[b] = Math.max(scales[b], Math.abs(weight[o * in + i]) * (1 + b % 5) / 448);
      }
    }
    for (int b = 0; b < scales.length; b++) {
      scales[b] = powers ? Math.scalb(1f, Math.getExponent(scales[b]) + 1) : scales[b];
      if (scaleType == SafetensorsDtype.BF16) {
        scales[b] = HalfFloats.ofBfloat16(HalfFloats.toBfloat16(scales[b]));
      }
    }
    byte[] bytes = new byte[weight.length];
    for (int at = 0; at < weight.length; at++) {
      float scale = scales[at / in / rows * across + at % in / columns];
      bytes[at] = Float8.of(weight[at] / scale);
      weight[at] = (float) ((double) Float8.value(bytes[at]) * scale);
    }
    plain.set(layer + ".weight", weight);
    packed.remove(layer + ".weight");
    packed.addBytes(layer + ".weight", SafetensorsDtype.F8_E4M3, bytes, out, in);
    scales(layer + ".weight_scale_inv", scaleType, scales, down, across);
  }

  /**
   * Rounds a layer to floats of 8 bits with one scale.
   *
   * @param name of the scale
   * @param shape of the scale
   */
  void floats(String layer, String name, long... shape) {
    float[] weight = plain.get(layer + ".weight").clone();
    float scale = 0;
    for (float w : weight) {
      scale = Math.max(scale, Math.abs(w) / 448);
    }
    byte[] bytes = new byte[weight.length];
    for (int at = 0; at < weight.length; at++) {
      bytes[at] = Float8.of(weight[at] / scale);
      weight[at] = (float) ((double) Float8.value(bytes[at]) * scale);
    }
    plain.set(layer + ".weight", weight);
    packed.remove(layer + ".weight");
    List<Long> dims = plain.shape(layer + ".weight");
    packed.addBytes(layer + ".weight", SafetensorsDtype.F8_E4M3, bytes, dims.get(0), dims.get(1));
    scales(layer + name, SafetensorsDtype.F32, new float[] {scale}, shape);
  }

  void words(String name, int[] words, long... shape) {
    ByteBuffer bytes = ByteBuffer.allocate(4 * words.length).order(ByteOrder.LITTLE_ENDIAN);
    bytes.asIntBuffer().put(words);
    packed.addBytes(name, SafetensorsDtype.I32, bytes.array(), shape);
  }

  void halves(String name, SafetensorsDtype type, short[] halves, long... shape) {
    ByteBuffer bytes = ByteBuffer.allocate(2 * halves.length).order(ByteOrder.LITTLE_ENDIAN);
    bytes.asShortBuffer().put(halves);
    packed.addBytes(name, type, bytes.array(), shape);
  }

  void scales(String name, SafetensorsDtype type, float[] scales, long... shape) {
    if (type == SafetensorsDtype.BF16) {
      short[] halves = new short[scales.length];
      for (int i = 0; i < halves.length; i++) {
        halves[i] = HalfFloats.toBfloat16(scales[i]);
      }
      halves(name, type, halves, shape);
      return;
    }
    ByteBuffer bytes = ByteBuffer.allocate(4 * scales.length).order(ByteOrder.LITTLE_ENDIAN);
    bytes.asFloatBuffer().put(scales);
    packed.addBytes(name, SafetensorsDtype.F32, bytes.array(), shape);
  }
}
