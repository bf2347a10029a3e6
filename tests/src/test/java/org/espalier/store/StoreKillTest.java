package org.espalier.store;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.HashSet;
import java.util.List;
import java.util.Random;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import org.espalier.TestProgram;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * A process that publishes, rolls back, pins and collects is killed (kill -9) at random moments:
 * {@code -Despalier.store.kills=500} for the long run. Afterwards the store opens, its current
 * version is as it was published, and no version whose publication was reported is gone, unless a
 * collection that was under way meant it.
 */
class StoreKillTest {
  private static final int KILLS = Integer.getInteger("espalier.store.kills", 30);

  private static final int MAKING = 5;

  @TempDir Path folder;

  @Test
  void aKilledWriterLosesNothing() throws Exception {
    Random random = new Random(7);
    Set<Long> expected = new HashSet<>();
    int half = 0;
    long reported = 0;
    long awaited = 0;
    for (int kill = 0; kill < KILLS; kill++) {
      // The first kills fall into the making of a store.
      boolean making = kill < MAKING;
      Path path = folder.resolve(making ? "making" + kill : "store");
      // A file, because what a dead process left in a pipe is lost.
      Path said = folder.resolve("said");
      Process process =
          TestProgram.of(Writer.class, path, kill)
              .redirectError(ProcessBuilder.Redirect.INHERIT)
              .redirectOutput(said.toFile())
              .start();
      // By what it has done, not by the clock, which means little on a busy machine.
      if (making) {
        await(process, () -> Files.exists(path));
      } else {
        int publications = random.nextInt(4);
        awaited += publications;
        await(process, () -> published(said).size() >= publications && Files.size(said) > 0);
        if (kill % 2 == 0) {
          await(process, () -> leftovers(path) > 0);
        }
      }
      Thread.sleep(random.nextInt(10));
      process.destroyForcibly();
      assertTrue(process.waitFor(60, TimeUnit.SECONDS));
      assertEquals(137, process.exitValue(), "it ended by itself");
      if (making) {
        assertEquals(List.of(), problems(ModelStore.create(path)));
        continue;
      }
      reported += published(said).size();
      for (String line : Files.readAllLines(said)) {
        String[] words = line.split(" ");
        if (words[0].equals("published")) {
          expected.add(Long.valueOf(words[1]));
        } else if (words[0].equals("collecting")) {
          for (int i = 1; i < words.length; i++) {
            expected.remove(Long.valueOf(words[i]));
          }
        }
      }
      ModelStore store = ModelStore.open(path);
      Set<Long> ids = new HashSet<>(store.ids());
      assertTrue(ids.containsAll(expected), kill + ": " + expected + " in " + ids);
      assertEquals(List.of(), problems(store));
      if (store.current().isPresent()) {
        store.holdCurrent().close();
      } else {
        assertEquals(Set.of(), expected);
      }
      half += leftovers(path);
    }
    assertTrue(reported >= awaited, reported + " were published, " + awaited + " seen");
    assertTrue(half > 0, "no kill fell into a write");
    System.out.printf(
        "%d kills, %d of them in the middle of a write; %d publications, %d of them left%n",
        KILLS, half, reported, expected.size());
  }

  private interface Condition {
    boolean holds() throws IOException;
  }

  /** Returns when the condition holds; the process must live until then. */
  private static void await(Process process, Condition condition) throws Exception {
    long deadline = System.nanoTime() + TimeUnit.MINUTES.toNanos(2);
    while (!condition.holds()) {
      assertTrue(process.isAlive(), "it ended by itself");
      assertTrue(System.nanoTime() < deadline, "it does not go on");
      Thread.sleep(1);
    }
  }

  /** The whole lines that tell of a publication. */
  private static List<String> published(Path said) throws IOException {
    return Files.readAllLines(said).stream().filter(line -> line.startsWith("published ")).toList();
  }

  private static List<String> problems(ModelStore store) {
    return store.ids().stream().flatMap(id -> store.verify(id).stream()).toList();
  }

  private static int leftovers(Path store) throws IOException {
    int count = 0;
    for (Path place : List.of(store, store.resolve("versions"))) {
      try (var content = Files.list(place)) {
        count += content.anyMatch(ModelStore::isTemporary) ? 1 : 0;
      }
    }
    return Math.min(count, 1);
  }

  /** Changes a store until it is killed, and says what it has done. */
  static final class Writer {
    private Writer() {}

    public static void main(String[] args) {
      ModelStore store = ModelStore.create(Path.of(args[0]));
      Random random = new Random(Long.parseLong(args[1]));
      System.out.println("ready");
      while (true) {
        try (StoreWriter writer = store.writer(Duration.ofSeconds(5))) {
          Version version =
              writer.publish(
                  files -> {
                    put(files, "weights", new byte[1 << 15 + random.nextInt(4)]);
                    put(files, "state/learner.json", new byte[100]);
                  },
                  "weights",
                  Lineage.NONE.withNote("of " + args[1]),
                  null);
          System.out.println("published " + version.id());
          if (random.nextInt(3) == 0 && !store.history().isEmpty()) {
            writer.rollback();
          }
          if (random.nextInt(4) == 0) {
            writer.pin(version.id(), random.nextBoolean());
          }
          if (random.nextInt(3) == 0) {
            StoreWriter.Rule rule = new StoreWriter.Rule(random.nextInt(4), null);
            StringBuilder line = new StringBuilder("collecting");
            writer.collect(rule, true).removed().forEach(id -> line.append(' ').append(id));
            System.out.println(line);
            writer.collect(rule, false);
            if (store.pinned().size() > 3) {
              store.pinned().forEach(id -> writer.pin(id, false));
            }
          }
        }
      }
    }

    private static void put(StoreWriter.NewVersion files, String name, byte[] bytes) {
      try (FileChannel channel = files.create(name)) {
        channel.write(ByteBuffer.wrap(bytes));
      } catch (IOException e) {
        throw files.failure(name, e);
      }
    }
  }
}
