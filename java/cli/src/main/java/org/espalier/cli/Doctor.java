package org.espalier.cli;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.Callable;
import org.bytedeco.javacpp.Loader;
import org.espalier.backend.Bandwidth;
import org.espalier.backend.Isa;
import org.espalier.compress.onnx.Int8Saturation;
import org.espalier.device.Cuda;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;

/** Says what this machine offers and what the kernels make of it. */
@Command(
    name = "doctor",
    description = {
      "Says what the kernels run on here: instruction set, threads, GPU or why none, the measured"
          + " copy bandwidth, the JVM and the native library.",
      "",
      "The copy bandwidth counts bytes read and bytes written. It is the ceiling of kernels that"
          + " read and write every byte once, measured on 256 MB in 2 MiB pages."
    },
    footer = {
      "",
      "Examples:",
      "  espalier doctor",
      "  ESPALIER_ISA=avx2 ESPALIER_THREADS=1 espalier doctor --json",
    })
final class Doctor implements Callable<Integer> {
  private static final long COPY_BYTES = 256_000_000;
  private static final int COPY_RUNS = 9;

  /** What JavaCPP calls the library that the kernels are called through. */
  private static final String BINDINGS = "jniespalier";

  @Mixin private CommonOptions common;

  @Override
  public Integer call() {
    Isa isa = Machine.isa();
    int threads = Machine.threads();
    List<String> isas =
        Arrays.stream(Isa.values()).filter(Isa::isAvailable).map(Doctor::name).toList();
    double copy = Bandwidth.COPY.measure(COPY_BYTES, COPY_RUNS);
    String library = Loader.getLoadedLibraries().get(BINDINGS);
    Runtime.Version java = Runtime.version();
    Build build = Build.current();
    ObjectNode json = build.toJson();
    json.put("isa", name(isa));
    ArrayNode available = json.putArray("available_isas");
    isas.forEach(available::add);
    json.put("threads", threads);
    ArrayNode gpus = json.putArray("gpus");
    ArrayNode conditions = json.putArray("gpu_conditions");
    for (int i = 0; i < Cuda.deviceCount(); i++) {
      gpus.add(Cuda.describe(i));
      conditions.add(condition(i));
    }
    boolean saturates = Int8Saturation.onThisMachine();
    json.put("int8_saturates", saturates);
    String noGpu = Cuda.isAvailable() ? null : Cuda.unavailabilityCause().getMessage();
    json.put("no_gpu_because", noGpu);
    json.put("copy_bytes_per_second", copy);
    json.put("java", java.toString());
    json.put("java_home", System.getProperty("java.home"));
    json.put("native_library", library);
    if (common.json()) {
      common.print(json);
      return 0;
    }
    Table table = new Table("", "");
    table.add("espalier", build.describe().substring("espalier ".length()));
    table.add("isa", name(isa) + " (this machine has " + String.join(", ", isas) + ")");
    table.add("threads", Integer.toString(threads));
    if (noGpu != null) {
      table.add("gpu", "none: " + noGpu);
    }
    for (int i = 0; i < gpus.size(); i++) {
      table.add("gpu", "cuda:" + i + " " + gpus.get(i).asText());
      table.add("", conditions.get(i).asText());
    }
    table.add("copy", String.format(Locale.ROOT, "%.1f GB/s read and written", copy * 1e-9));
    table.add(
        "int8",
        saturates
            ? "ONNX Runtime's 8-bit products saturate here: quantize with --unsigned-weights"
            : "ONNX Runtime's 8-bit products are exact here");
    table.add("java", java + " in " + System.getProperty("java.home"));
    table.add("natives", library);
    table.print(common.out());
    return 0;
  }

  /** Clocks and the like, or why they are not known. */
  private static String condition(int device) {
    try {
      return Cuda.condition(device).toString();
    } catch (UnsupportedOperationException e) {
      return e.getMessage();
    }
  }

  private static String name(Isa isa) {
    return isa.name().toLowerCase(Locale.ROOT);
  }
}
