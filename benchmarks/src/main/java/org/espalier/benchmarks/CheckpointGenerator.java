package org.espalier.benchmarks;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import org.espalier.format.AtomicFolder;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsWriter;
import org.espalier.format.safetensors.TensorSpec;

/**
 * Makes a checkpoint with the tensor names and shapes of a decoder language model and weights that
 * are sums of uniform numbers, in shards of at most 2 GB: {@code CheckpointGenerator FOLDER GB}.
 * Every tenth layer is F32, the others are BF16. The same size gives the same bytes.
 */
public final class CheckpointGenerator {
  private static final long HIDDEN = 4096;
  private static final long INTERMEDIATE = 11008;
  private static final long VOCABULARY = 32000;
  private static final long SHARD_BYTES = 2_000_000_000;
  private static final int PIECE_BYTES = 8 << 20;

  private CheckpointGenerator() {}

  public static void main(String[] args) throws IOException {
    Path target = Path.of(args[0]);
    long bytes = (long) (Double.parseDouble(args[1]) * 1e9);
    List<List<TensorSpec>> shards = shards(bytes);
    try (AtomicFolder folder = AtomicFolder.create(target)) {
      StringBuilder weightMap = new StringBuilder();
      long total = 0;
      long seed = 0;
      for (int i = 0; i < shards.size(); i++) {
        String name = String.format("model-%05d-of-%05d.safetensors", i + 1, shards.size());
        try (FileChannel channel = folder.create(name)) {
          SafetensorsWriter writer =
              new SafetensorsWriter(
                  channel, e -> folder.failure(name, e), shards.get(i), Map.of("format", "pt"));
          for (TensorSpec spec : shards.get(i)) {
            fill(writer, spec, seed++);
            total += spec.bytes();
            weightMap
                .append(weightMap.isEmpty() ? "" : ",\n")
                .append("    \"" + spec.name() + "\": \"" + name + "\"");
          }
          writer.finish();
        }
      }
      writeText(
          folder,
          Checkpoint.INDEX,
          "{\n  \"metadata\": {\"total_size\": %d},\n  \"weight_map\": {\n%s\n  }\n}\n"
              .formatted(total, weightMap));
      writeText(
          folder,
          "config.json",
          "{\n  \"architectures\": [\"LlamaForCausalLM\"],\n  \"model_type\": \"llama\"\n}\n");
      folder.commit();
      System.out.printf("%d tensors, %d bytes, %d shards%n", seed, total, shards.size());
    }
    if (!Files.isDirectory(target)) {
      throw new IOException(target + " is missing");
    }
  }

  private static List<List<TensorSpec>> shards(long bytes) {
    List<List<TensorSpec>> shards = new ArrayList<>(List.of(new ArrayList<>()));
    long size = 0;
    long total = 0;
    for (int layer = -1; total < bytes; layer++) {
      for (TensorSpec spec : layer < 0 ? embeddings() : layer(layer)) {
        if (size + spec.bytes() > SHARD_BYTES) {
          shards.add(new ArrayList<>());
          size = 0;
        }
        shards.get(shards.size() - 1).add(spec);
        size += spec.bytes();
        total += spec.bytes();
      }
    }
    return shards;
  }

  private static List<TensorSpec> embeddings() {
    List<Long> shape = List.of(VOCABULARY, HIDDEN);
    return List.of(
        new TensorSpec("model.embed_tokens.weight", SafetensorsDtype.BF16, shape),
        new TensorSpec("lm_head.weight", SafetensorsDtype.BF16, shape));
  }

  private static List<TensorSpec> layer(int layer) {
    Map<String, List<Long>> shapes = new LinkedHashMap<>();
    for (String projection : List.of("q_proj", "k_proj", "v_proj", "o_proj")) {
      shapes.put("self_attn." + projection, List.of(HIDDEN, HIDDEN));
    }
    shapes.put("mlp.gate_proj", List.of(INTERMEDIATE, HIDDEN));
    shapes.put("mlp.up_proj", List.of(INTERMEDIATE, HIDDEN));
    shapes.put("mlp.down_proj", List.of(HIDDEN, INTERMEDIATE));
    shapes.put("input_layernorm", List.of(HIDDEN));
    shapes.put("post_attention_layernorm", List.of(HIDDEN));
    SafetensorsDtype dtype = layer % 10 == 9 ? SafetensorsDtype.F32 : SafetensorsDtype.BF16;
    List<TensorSpec> specs = new ArrayList<>();
    shapes.forEach(
        (name, shape) ->
            specs.add(
                new TensorSpec("model.layers." + layer + "." + name + ".weight", dtype, shape)));
    return specs;
  }

  private static void fill(SafetensorsWriter writer, TensorSpec spec, long seed) {
    ByteBuffer piece = ByteBuffer.allocateDirect(PIECE_BYTES).order(ByteOrder.LITTLE_ENDIAN);
    SplittableRandom random = new SplittableRandom(seed);
    boolean wide = spec.dtype() == SafetensorsDtype.F32;
    long left = spec.bytes();
    while (left > 0) {
      piece.clear().limit((int) Math.min(PIECE_BYTES, left));
      while (piece.hasRemaining()) {
        long bits = random.nextLong();
        int sum = (short) bits + (short) (bits >> 16) + (short) (bits >> 32) + (short) (bits >> 48);
        // The low bits of the long once more, so that F32 values are not on a coarse grid.
        float value = (sum + (bits & 0xffff) * 0x1p-16f) * 0x1p-21f;
        if (wide) {
          piece.putFloat(value);
        } else {
          piece.putShort((short) (Float.floatToRawIntBits(value) >> 16));
        }
      }
      left -= piece.limit();
      writer.append(spec.name(), piece.flip());
    }
  }

  private static void writeText(AtomicFolder folder, String name, String text) throws IOException {
    try (FileChannel channel = folder.create(name)) {
      channel.write(ByteBuffer.wrap(text.getBytes(StandardCharsets.UTF_8)));
    }
  }
}
