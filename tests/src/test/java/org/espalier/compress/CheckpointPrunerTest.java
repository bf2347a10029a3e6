package org.espalier.compress;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.function.Predicate;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.format.safetensors.Checkpoint;
import org.espalier.format.safetensors.RawSafetensors;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsFile;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.op.MagnitudePrune;
import org.espalier.op.MagnitudePrune.Amount;
import org.espalier.op.MagnitudePrune.Count;
import org.espalier.op.MagnitudePrune.Pattern;
import org.espalier.op.MagnitudePrune.Rule;
import org.espalier.op.MagnitudePrune.Scope;
import org.espalier.op.MagnitudePrune.Sparsity;
import org.espalier.op.MagnitudePrune.Threshold;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

class CheckpointPrunerTest extends CheckpointFolders {
  private static final List<String> CHOSEN =
      List.of(
          "lm_head.weight",
          "model.layers.0.q_proj.weight",
          "model.layers.0.up_proj.weight",
          "model.layers.1.conv.weight",
          "model.layers.1.q_proj.weight");

  static Stream<Rule> rules() {
    return Stream.of(
        new Amount(0.5, Scope.GLOBAL),
        new Amount(0.3, Scope.TENSOR),
        new Amount(0, Scope.GLOBAL),
        new Amount(1, Scope.GLOBAL),
        new Count(777, Scope.GLOBAL),
        new Count(200, Scope.TENSOR),
        new Sparsity(0.7, Scope.GLOBAL),
        new Threshold(0.03f),
        new Pattern(2, 4),
        new Pattern(1, 8));
  }

  @ParameterizedTest
  @MethodSource("rules")
  void prunesWhatTheRuleSaysHoweverItIsSharded(Rule rule) throws IOException {
    TestModel source = TestModel.transformer();
    Map<String, boolean[]> kept = expected(source, CHOSEN, rule, Map.of());
    Path single = source.single(model);
    Path mask = folder.resolve("mask");
    CheckpointPruner.Result result = prune(single, target, rule, null, mask);
    check(source, kept, target, result);
    checkMask(kept, mask, source);
    Path shards = source.sharded(folder.resolve("shards"), 3);
    Path sharded = folder.resolve("sharded");
    CheckpointPruner.Result second = prune(shards, sharded, rule, null, null);
    check(source, kept, sharded, second);
    assertEquals(result.threshold(), second.threshold());
    Path file = folder.resolve("file.safetensors");
    prune(model.resolve(Checkpoint.SINGLE), file, rule, null, null);
    assertArrayEquals(
        Files.readAllBytes(target.resolve(Checkpoint.SINGLE)), Files.readAllBytes(file));
  }

  @ParameterizedTest
  @MethodSource("rules")
  void anEarlierMaskHolds(Rule rule) throws IOException {
    TestModel source = TestModel.transformer();
    source.single(model);
    Path first = folder.resolve("first");
    prune(model, folder.resolve("once"), new Amount(0.2, Scope.GLOBAL), null, first);
    Map<String, boolean[]> earlier =
        expected(source, CHOSEN, new Amount(0.2, Scope.GLOBAL), Map.of());
    Map<String, boolean[]> kept = expected(source, CHOSEN, rule, earlier);
    Path second = folder.resolve("second");
    CheckpointPruner.Result result = prune(model, target, rule, first, second);
    check(source, kept, target, result);
    checkMask(kept, second, source);
  }

  @Test
  void piecesOfLargeTensorsAgreeOnTies() throws IOException {
    // More than one piece of equal values in two tensors: the cut falls inside a piece.
    float[] equal = new float[1_100_003];
    Arrays.fill(equal, 0.5f);
    TestModel source =
        new TestModel()
            .add("a", SafetensorsDtype.F32, equal, 1, equal.length)
            .add("b", SafetensorsDtype.BF16, equal, equal.length, 1);
    source.file(model);
    Rule rule = new Count(1_500_001, Scope.GLOBAL);
    Path mask = folder.resolve("mask");
    CheckpointPruner.Result result = prune(model, target, rule, null, mask);
    check(source, expected(source, List.of("a", "b"), rule, Map.of()), target, result);
    checkMask(expected(source, List.of("a", "b"), rule, Map.of()), mask, source);
    assertEquals(1_500_001, result.pruned());
    assertEquals(equal.length, result.tensors().get(0).pruned());
    assertEquals(0.5f, result.threshold());
  }

  @Test
  void patternsRunThroughPiecesOfLargeTensors() throws IOException {
    Random random = new Random(3);
    TestModel source =
        new TestModel()
            .addRandom(random, "m.weight", SafetensorsDtype.F32, 1100, 1000)
            .addRandom(random, "v.weight", SafetensorsDtype.BF16, 1_200_000);
    source.file(model);
    Rule rule = new Pattern(2, 4);
    Path mask = folder.resolve("mask");
    List<String> both = List.of("m.weight", "v.weight");
    CheckpointPruner.Result result =
        CheckpointPruner.prune(
            new CheckpointPruner.Job(model, target, rule, t -> true, null, mask), Progress.NONE);
    check(source, expected(source, both, rule, Map.of()), target, result);
    checkMask(expected(source, both, rule, Map.of()), mask, source);
  }

  @Test
  void aFolderComesOutWhole() throws IOException {
    TestModel source = TestModel.transformer();
    source.sharded(model, 2);
    prune(model, target, new Amount(0.5, Scope.GLOBAL), null, null);
    assertEquals(
        List.of(
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "sub/notes.txt",
            "tokenizer.json",
            "vocab.txt"),
        TestModel.files(target));
    assertFalse(Files.isSymbolicLink(target.resolve("vocab.txt")));
    assertEquals("{\"model_type\":\"llama\"}", Files.readString(target.resolve("config.json")));
    JsonNode index = new ObjectMapper().readTree(target.resolve(Checkpoint.INDEX).toFile());
    long bytes = source.specs().keySet().stream().mapToLong(n -> source.bytes(n).length).sum();
    assertEquals(bytes, index.at("/metadata/total_size").asLong());
    assertEquals(source.specs().size(), index.get("weight_map").size());
    assertEquals(List.of("model", "out"), list(folder));
  }

  @ParameterizedTest
  @MethodSource("rules")
  void tensorsWithoutElementsPassThrough(Rule rule) throws IOException {
    TestModel source =
        new TestModel()
            .add("empty.weight", SafetensorsDtype.F32, new float[0], 0, 16)
            .addRandom(new Random(1), "full.weight", SafetensorsDtype.F32, 64, 16);
    source.file(model);
    Path mask = folder.resolve("mask");
    if (rule instanceof Count count && count.scope() == Scope.TENSOR) {
      assertRefused(rule, t -> true, "200");
      return;
    }
    prune(model, target, rule, null, mask);
    List<String> both = List.of("empty.weight", "full.weight");
    Map<String, boolean[]> kept = expected(source, both, rule, Map.of());
    checkMask(kept, mask, source);
    Rule half = new Amount(0.5, Scope.TENSOR);
    CheckpointPruner.Result result = prune(model, folder.resolve("again"), half, mask, null);
    check(source, expected(source, both, half, kept), folder.resolve("again"), result);
  }

  @Test
  void twoRunsGiveTheSameBytes() throws IOException {
    TestModel.transformer().sharded(model, 2);
    for (String out : List.of("one", "two")) {
      prune(
          model,
          folder.resolve(out),
          new Amount(0.5, Scope.GLOBAL),
          null,
          folder.resolve(out + "-mask"));
    }
    for (String file : TestModel.files(folder.resolve("one"))) {
      assertArrayEquals(
          Files.readAllBytes(folder.resolve("one").resolve(file)),
          Files.readAllBytes(folder.resolve("two").resolve(file)),
          file);
    }
    assertArrayEquals(
        Files.readAllBytes(folder.resolve("one-mask")),
        Files.readAllBytes(folder.resolve("two-mask")));
  }

  @Test
  void filesWhoseTensorsAreNotAlignedArePrunedToo() throws IOException {
    TestModel source = TestModel.transformer();
    byte[] aligned = Files.readAllBytes(source.file(model));
    // One space more in the header moves all tensors to odd places.
    byte[] odd = new byte[aligned.length + 1];
    int header = (int) ByteBuffer.wrap(aligned).order(ByteOrder.LITTLE_ENDIAN).getLong();
    System.arraycopy(aligned, 0, odd, 0, 8 + header);
    odd[8 + header] = ' ';
    System.arraycopy(aligned, 8 + header, odd, 9 + header, aligned.length - 8 - header);
    ByteBuffer.wrap(odd).order(ByteOrder.LITTLE_ENDIAN).putLong(header + 1L);
    Files.write(model, odd);
    try (SafetensorsFile file = SafetensorsFile.open(model)) {
      assertFalse(file.isAligned(file.tensor("lm_head.weight")));
    }
    Rule rule = new Amount(0.5, Scope.GLOBAL);
    CheckpointPruner.Result result = prune(model, target, rule, null, null);
    check(source, expected(source, CHOSEN, rule, Map.of()), target, result);
    assertEquals(List.of("model", "out"), list(folder));
  }

  @Test
  void progressEndsAtTheEnd() throws IOException {
    TestModel.transformer().single(model);
    List<String> events = new ArrayList<>();
    CheckpointPruner.prune(
        job(model, target, new Amount(0.5, Scope.GLOBAL), null, null),
        (phase, done, total) -> {
          assertTrue(done <= total);
          events.add(phase + (done == total ? " done" : ""));
        });
    assertTrue(events.contains("SELECT done"), events.toString());
    assertEquals("WRITE done", events.get(events.size() - 1));
  }

  @Test
  void refusesRulesThatDoNotFit() throws IOException {
    TestModel.transformer().single(model);
    assertRefused(new Count(1_000_000, Scope.GLOBAL), CheckpointPruner::isPrunable, "1000000");
    // 16 inputs are no multiple of 5; the first tensor in order is named.
    assertRefused(
        new Pattern(2, 5), CheckpointPruner::isPrunable, "'lm_head.weight'", "not a multiple of 5");
    assertRefused(new Amount(0.5, Scope.GLOBAL), t -> false, "no tensor is chosen");
    assertRefused(new Amount(0.5, Scope.GLOBAL), t -> true, "'model.position_ids'", "I64", "BF16");
  }

  @Test
  void refusesTargetsThatAreOrHoldTheInput() throws IOException {
    TestModel.transformer().single(model);
    Rule rule = new Amount(0.5, Scope.GLOBAL);
    for (Path bad : List.of(model, model.resolve("../model"), folder)) {
      assertRefused(bad, rule, "cannot write");
    }
    assertRefused(model.resolve("inside"), rule, "inside the input");
    assertRefused(folder.resolve("none/out"), rule, "does not exist");
    Path file = model.resolve(Checkpoint.SINGLE);
    InputException e =
        assertThrows(InputException.class, () -> prune(file, file, rule, null, null));
    assertTrue(e.getMessage().contains("is the input"), e.getMessage());
    for (Path mask : List.of(target, target.resolve("mask"), file)) {
      assertThrows(InputException.class, () -> prune(file, target, rule, null, mask));
    }
    assertFalse(Files.exists(target));
  }

  @Test
  void refusesAFolderThatLinksElsewhere() throws IOException {
    TestModel.transformer().single(model);
    Path elsewhere = Files.createDirectory(folder.resolve("elsewhere"));
    Files.createSymbolicLink(model.resolve("root"), elsewhere);
    assertRefused(target, new Amount(0.5, Scope.GLOBAL), "root", "neither a file nor a link");
  }

  @Test
  void refusesMasksThatDoNotFit() throws IOException {
    TestModel.transformer().single(model);
    Path mask = folder.resolve("mask");
    Rule rule = new Amount(0.5, Scope.GLOBAL);
    prune(model, target, rule, null, mask);
    TestModel other = TestModel.transformer();
    other.addRandom(new Random(1), "lm_head.weight", SafetensorsDtype.BF16, 16, 40);
    Path changed = other.single(folder.resolve("changed"));
    Path out = folder.resolve("out2");
    assertMaskRefused(changed, out, t -> CHOSEN.contains(t.name()), mask, "'lm_head.weight'");
    assertMaskRefused(
        model,
        out,
        t -> t.name().endsWith("q_proj.weight"),
        mask,
        "'lm_head.weight'",
        "not chosen");
    Path less =
        new TestModel()
            .addRandom(new Random(1), "x.weight", SafetensorsDtype.F32, 4, 4)
            .file(folder.resolve("less"));
    assertMaskRefused(less, out, t -> true, mask, "'lm_head.weight'", "no tensor");
    assertMaskRefused(
        model, out, t -> true, model.resolve(Checkpoint.SINGLE), "not a file of masks");
    assertFalse(Files.exists(out));
  }

  private static void assertMaskRefused(
      Path model, Path out, Predicate<TensorInfo> choice, Path mask, String... messages) {
    Predicate<TensorInfo> computable = t -> t.dtype().computable() != null;
    InputException e =
        assertThrows(
            InputException.class,
            () ->
                CheckpointPruner.prune(
                    new CheckpointPruner.Job(
                        model,
                        out,
                        new Amount(0.5, Scope.GLOBAL),
                        choice.and(computable),
                        mask,
                        null),
                    Progress.NONE));
    for (String message : messages) {
      assertTrue(e.getMessage().contains(message), e.getMessage() + " lacks " + message);
    }
  }

  /** A sparse tensor larger than the disk stands for a full one. */
  @Test
  void refusesBeforeItStartsWhatTheDiskCannotHold() throws IOException {
    long free = folder.toFile().getUsableSpace();
    long bytes = free + (1L << 20);
    String header =
        "{\"w\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
            + "\"x\":{\"dtype\":\"U8\",\"shape\":[%d],\"data_offsets\":[16,%d]}}"
                .formatted(bytes, 16 + bytes);
    header += " ".repeat((8 - header.length() % 8) % 8);
    RawSafetensors.write(model, header, 16);
    try (FileChannel channel = FileChannel.open(model, StandardOpenOption.WRITE)) {
      channel.write(ByteBuffer.wrap(new byte[1]), 8L + header.length() + 16 + bytes - 1);
    }
    assertRefused(target, new Amount(0.5, Scope.GLOBAL), "left", "it needs");
  }

  private void assertRefused(Rule rule, Predicate<TensorInfo> choice, String... messages) {
    InputException e =
        assertThrows(
            InputException.class,
            () ->
                CheckpointPruner.prune(
                    new CheckpointPruner.Job(model, target, rule, choice, null, null),
                    Progress.NONE));
    for (String message : messages) {
      assertTrue(e.getMessage().contains(message), e.getMessage() + " lacks " + message);
    }
    assertFalse(Files.exists(target));
  }

  private void assertRefused(Path to, Rule rule, String... messages) throws IOException {
    List<String> before = list(folder);
    InputException e = assertThrows(InputException.class, () -> prune(model, to, rule, null, null));
    for (String message : messages) {
      assertTrue(e.getMessage().contains(message), e.getMessage() + " lacks " + message);
    }
    assertEquals(before, list(folder));
  }

  private static List<String> list(Path folder) throws IOException {
    try (Stream<Path> files = Files.list(folder)) {
      return files.map(f -> f.getFileName().toString()).sorted().toList();
    }
  }

  private static CheckpointPruner.Job job(
      Path model, Path target, Rule rule, Path maskIn, Path maskOut) {
    return new CheckpointPruner.Job(
        model, target, rule, CheckpointPruner::isPrunable, maskIn, maskOut);
  }

  private static CheckpointPruner.Result prune(
      Path model, Path target, Rule rule, Path maskIn, Path maskOut) {
    return CheckpointPruner.prune(job(model, target, rule, maskIn, maskOut), Progress.NONE);
  }

  private static void check(
      TestModel source, Map<String, boolean[]> kept, Path target, CheckpointPruner.Result result) {
    long total = 0;
    long pruned = 0;
    Map<String, MagnitudePrune.TensorResult> counts = new HashMap<>();
    result.tensors().forEach(t -> counts.put(t.name(), t));
    try (Checkpoint checkpoint = Checkpoint.open(target)) {
      assertEquals(source.specs().size(), checkpoint.tensors().size());
      for (String name : source.specs().keySet()) {
        byte[] expected = source.bytes(name).clone();
        boolean[] keep = kept.get(name);
        if (keep != null) {
          int width = source.specs().get(name).dtype().bits() / 8;
          int zeros = 0;
          for (int i = 0; i < keep.length; i++) {
            if (!keep[i]) {
              Arrays.fill(expected, i * width, (i + 1) * width, (byte) 0);
              zeros++;
            }
          }
          assertEquals(
              new MagnitudePrune.TensorResult(name, keep.length, zeros), counts.remove(name));
          total += keep.length;
          pruned += zeros;
        }
        assertArrayEquals(expected, TestModel.read(checkpoint, name), name);
      }
    }
    assertTrue(counts.isEmpty(), counts.toString());
    assertEquals(total, result.total());
    assertEquals(pruned, result.pruned());
    assertTrue(result.seconds().total() > 0);
  }

  private static void checkMask(Map<String, boolean[]> kept, Path path, TestModel source) {
    try (MaskFile mask = MaskFile.open(path);
        SafetensorsFile file = SafetensorsFile.open(path)) {
      assertEquals(kept.size(), mask.masks().size());
      kept.forEach(
          (name, keep) -> {
            byte[] bits = RawSafetensors.read(file, name);
            assertEquals((keep.length + 7) / 8, bits.length);
            for (int i = 0; i < keep.length; i++) {
              assertEquals(keep[i], (bits[i / 8] >> i % 8 & 1) == 1, name + " " + i);
            }
            assertEquals(
                String.join(
                    ",", source.specs().get(name).shape().stream().map(String::valueOf).toList()),
                file.metadata().get("shape:" + name));
          });
    }
  }

  /** What the rule keeps, by sorting. */
  private static Map<String, boolean[]> expected(
      TestModel source, List<String> names, Rule rule, Map<String, boolean[]> earlier) {
    Map<String, boolean[]> kept = new HashMap<>();
    for (String name : names) {
      boolean[] keep = new boolean[source.values(name).length];
      Arrays.fill(keep, true);
      kept.put(name, earlier.containsKey(name) ? earlier.get(name).clone() : keep);
    }
    Scope scope =
        rule instanceof Amount a
            ? a.scope()
            : rule instanceof Count c ? c.scope() : rule instanceof Sparsity s ? s.scope() : null;
    if (rule instanceof Threshold threshold) {
      for (String name : names) {
        float[] values = source.values(name);
        for (int i = 0; i < values.length; i++) {
          kept.get(name)[i] &= Math.abs(values[i]) >= threshold.threshold();
        }
      }
    } else if (rule instanceof Pattern pattern) {
      names.forEach(n -> pattern(source, n, pattern, kept.get(n)));
    } else if (scope == Scope.GLOBAL) {
      smallest(source, names, rule, kept);
    } else {
      names.forEach(n -> smallest(source, List.of(n), rule, kept));
    }
    return kept;
  }

  private record Place(float magnitude, String name, int index) {}

  private static void smallest(
      TestModel source, List<String> names, Rule rule, Map<String, boolean[]> kept) {
    List<Place> places = new ArrayList<>();
    long total = 0;
    for (String name : names) {
      float[] values = source.values(name);
      total += values.length;
      for (int i = 0; i < values.length; i++) {
        if (kept.get(name)[i]) {
          places.add(new Place(Math.abs(values[i]), name, i));
        }
      }
    }
    long gone = total - places.size();
    // The sort is stable: ties stay in list order.
    places.sort(Comparator.comparingDouble(Place::magnitude));
    long count =
        rule instanceof Amount a
            ? (long) Math.rint(a.fraction() * places.size())
            : rule instanceof Sparsity s
                ? Math.max(0, (long) Math.rint(s.fraction() * total) - gone)
                : ((Count) rule).count();
    for (Place place : places.subList(0, (int) count)) {
      kept.get(place.name())[place.index()] = false;
    }
  }

  private static void pattern(TestModel source, String name, Pattern pattern, boolean[] kept) {
    float[] values = source.values(name);
    List<Long> shape = source.specs().get(name).shape();
    int in = (int) (long) shape.get(Math.min(1, shape.size() - 1));
    int inner = shape.size() < 3 ? 1 : (int) (shape.get(2) * shape.get(3));
    for (int first = 0; first < values.length; first++) {
      int channel = first / inner % in;
      if (channel % pattern.group() != 0) {
        continue;
      }
      List<Integer> group = new ArrayList<>();
      for (int j = 0; j < pattern.group(); j++) {
        group.add(first + j * inner);
      }
      // What an earlier mask prunes counts as smallest; ties go to the lowest index.
      group.sort(Comparator.comparingDouble((Integer i) -> kept[i] ? Math.abs(values[i]) : -1));
      for (int i : group.subList(0, pattern.group() - pattern.keep())) {
        kept[i] = false;
      }
    }
  }
}
