package org.espalier.benchmarks;

import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.SerializationFeature;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TreeMap;
import org.espalier.backend.Isa;
import org.openjdk.jmh.results.BenchmarkResult;
import org.openjdk.jmh.results.IterationResult;
import org.openjdk.jmh.results.RunResult;
import org.openjdk.jmh.runner.Runner;
import org.openjdk.jmh.runner.options.ChainedOptionsBuilder;
import org.openjdk.jmh.runner.options.OptionsBuilder;
import org.openjdk.jmh.runner.options.TimeValue;
import org.openjdk.jmh.runner.options.VerboseMode;

/**
 * Runs JMH benchmarks of operations beside their peers in one JVM and prints a table.
 *
 * <p>All contenders run in this process (no forks), in rounds: first each once, then each again, so
 * that a machine whose speed drifts is fair to all. What is timed is native code, on which a shared
 * JIT profile has no influence. A row is the median over all iterations of all rounds, with the
 * 20th and 80th percentile.
 *
 * <pre>Main --include REGEX [--threads 2] [--rounds 3] [--size NAME,…] [--out FILE.json]</pre>
 */
public final class Main {
  private Main() {}

  public static void main(String[] arguments) throws Exception {
    Map<String, String> options = new TreeMap<>();
    for (int i = 0; i + 1 < arguments.length; i += 2) {
      options.put(arguments[i], arguments[i + 1]);
    }
    int rounds = Integer.parseInt(options.getOrDefault("--rounds", "3"));
    ChainedOptionsBuilder builder =
        new OptionsBuilder()
            .include(options.getOrDefault("--include", "Benchmark"))
            .forks(0)
            .warmupIterations(1)
            .warmupTime(TimeValue.milliseconds(300))
            .measurementIterations(3)
            .measurementTime(TimeValue.milliseconds(400))
            .shouldFailOnError(true)
            .verbosity(VerboseMode.SILENT)
            .param("threads", options.getOrDefault("--threads", "2").split(","));
    if (options.containsKey("--size")) {
      builder.param("size", options.get("--size").split(","));
    }
    Map<Row, List<Double>> samples = new LinkedHashMap<>();
    for (int round = 1; round <= rounds; round++) {
      System.err.println("round " + round + " of " + rounds);
      Collection<RunResult> results = new Runner(builder.build()).run();
      for (RunResult result : results) {
        List<Double> milliseconds =
            samples.computeIfAbsent(Row.of(result), row -> new ArrayList<>());
        for (BenchmarkResult fork : result.getBenchmarkResults()) {
          for (IterationResult iteration : fork.getIterationResults()) {
            milliseconds.add(iteration.getPrimaryResult().getScore());
          }
        }
      }
    }
    if (samples.isEmpty()) {
      throw new IllegalStateException("no benchmark ran");
    }
    List<Map<String, Object>> rows = new ArrayList<>();
    samples.forEach((row, milliseconds) -> rows.add(row.summary(milliseconds)));
    print(rows);
    if (options.containsKey("--out")) {
      Map<String, Object> document = new LinkedHashMap<>();
      document.put("time", Instant.now().toString());
      document.put("machine", machine());
      document.put("isa", Isa.current().name().toLowerCase(Locale.ROOT));
      document.put("allocator", System.getenv("MALLOC_MMAP_MAX_") == null ? "default" : "tuned");
      document.put("jvm", System.getProperty("java.vm.version"));
      document.put("rows", rows);
      new ObjectMapper()
          .enable(SerializationFeature.INDENT_OUTPUT)
          .writeValue(Path.of(options.get("--out")).toFile(), document);
    }
    // libtorch's thread teams outlive main.
    System.exit(0);
  }

  private record Row(String operation, String method, String size, int threads, double bytes) {
    static Row of(RunResult result) {
      String name = result.getParams().getBenchmark();
      int dot = name.lastIndexOf('.');
      String method = name.substring(dot + 1);
      String size = result.getParams().getParam("size");
      try {
        Comparison comparison =
            (Comparison) Class.forName(name.substring(0, dot)).getConstructor().newInstance();
        return new Row(
            comparison.getClass().getSimpleName().replace("Benchmark", ""),
            method,
            size,
            Integer.parseInt(result.getParams().getParam("threads")),
            comparison.bytes(method, size));
      } catch (ReflectiveOperationException e) {
        throw new IllegalStateException(name + " is no Comparison", e);
      }
    }

    Map<String, Object> summary(List<Double> milliseconds) {
      double[] sorted = milliseconds.stream().mapToDouble(x -> x).sorted().toArray();
      double median = sorted[sorted.length / 2];
      Map<String, Object> map = new LinkedHashMap<>();
      map.put("operation", operation);
      map.put("method", method);
      map.put("size", size);
      map.put("threads", threads);
      map.put("ms_p50", median);
      map.put("ms_p20", sorted[sorted.length / 5]);
      map.put("ms_p80", sorted[sorted.length * 4 / 5]);
      map.put("samples", sorted.length);
      map.put("bytes", bytes);
      map.put("gb_per_s", bytes / median * 1e-6);
      return map;
    }
  }

  /** Each torch row with how many times as long it takes as the first espalier row of its group. */
  private static void print(List<Map<String, Object>> rows) {
    System.out.println(
        "| operation | size | threads | method | ms (p20 to p80) | GB/s | times espalier |");
    System.out.println("|---|---|---|---|---|---|---|");
    for (Map<String, Object> row : rows) {
      double ours =
          rows.stream()
              .filter(
                  r ->
                      r.get("operation").equals(row.get("operation"))
                          && r.get("size").equals(row.get("size"))
                          && r.get("threads").equals(row.get("threads"))
                          && ((String) r.get("method")).startsWith("espalier"))
              .mapToDouble(r -> (double) r.get("ms_p50"))
              .findFirst()
              .orElse(Double.NaN);
      double median = (double) row.get("ms_p50");
      System.out.printf(
          Locale.ROOT,
          "| %s | %s | %s | %s | %.4g (%.4g to %.4g) | %.1f | %.2f |%n",
          row.get("operation"),
          row.get("size"),
          row.get("threads"),
          row.get("method"),
          median,
          (double) row.get("ms_p20"),
          (double) row.get("ms_p80"),
          (double) row.get("gb_per_s"),
          median / ours);
    }
  }

  static String machine() throws java.io.IOException {
    String model = "unknown processor";
    Path cpuinfo = Path.of("/proc/cpuinfo");
    if (Files.exists(cpuinfo)) {
      model =
          Files.readAllLines(cpuinfo).stream()
              .filter(line -> line.startsWith("model name"))
              .map(line -> line.substring(line.indexOf(':') + 1).trim())
              .findFirst()
              .orElse(model);
    }
    return model + ", " + Runtime.getRuntime().availableProcessors() + " processors";
  }
}
