package org.espalier.cli;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.time.Duration;
import java.time.Instant;
import java.util.concurrent.Callable;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.espalier.InputException;
import org.espalier.format.Quantity;
import org.espalier.store.ModelStore;
import org.espalier.store.StoreWriter;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** Removes old versions. */
@Command(
    name = "gc",
    description = {
      "Removes versions that are beyond the newest N and older than AGE; with one of the two"
          + " options, the other does not matter.",
      "",
      "Never removed are the current version, the one that 'rollback' would go back to, pinned"
          + " ones, ones that a process is reading, and ones whose record is damaged or, with"
          + " --trust, was signed by no trusted key. These last are not among the newest N. With"
          + " --trust the newest version that a trusted key signed stays too."
    },
    footer = {
      "",
      "Examples:",
      "  espalier store gc --store models/ --keep 10",
      "  espalier store gc --store models/ --keep 3 --older-than 30d --dry-run",
    })
final class StoreGc implements Callable<Integer> {
  private static final Pattern AGE = Pattern.compile("([0-9]{1,9})([smhdw])");

  @Mixin private CommonOptions common;
  @Mixin private StoreOptions options;
  @Mixin private StoreOptions.Wait wait;

  @Option(
      names = "--keep",
      paramLabel = "N",
      description = "Keep the newest N versions that can be opened.")
  private Integer keep;

  @Option(
      names = "--older-than",
      paramLabel = "AGE",
      description = "Keep what is younger: a number with s, m, h, d or w, as 30d.")
  private String age;

  @Option(names = "--dry-run", description = "Only tell what would be removed.")
  private boolean dryRun;

  @Override
  public Integer call() {
    if (keep == null && age == null) {
      throw new InputException("say what to keep: --keep N, --older-than AGE, or both");
    }
    if (keep != null && keep < 0) {
      throw new InputException("--keep " + keep + "; 0 or more is right");
    }
    StoreWriter.Rule rule =
        new StoreWriter.Rule(keep, age == null ? null : Instant.now().minus(age(age)));
    ModelStore store = options.open();
    StoreWriter.Collected collected;
    try (StoreWriter writer = wait.writer(store)) {
      collected = writer.collect(rule, dryRun);
    }
    if (common.json()) {
      ObjectNode json = JsonNodeFactory.instance.objectNode();
      ArrayNode removed = json.putArray("removed");
      collected.removed().forEach(removed::add);
      ArrayNode inUse = json.putArray("in_use");
      collected.inUse().forEach(inUse::add);
      common.print(json.put("bytes", collected.bytes()).put("dry_run", dryRun));
      return 0;
    }
    common
        .out()
        .println(
            (dryRun ? "would remove " : "removed ")
                + collected.removed().size()
                + " versions, "
                + Quantity.bytes(collected.bytes())
                + (collected.removed().isEmpty() ? "" : ": " + collected.removed()));
    if (!collected.inUse().isEmpty()) {
      common.note("kept because a process reads them: " + collected.inUse());
    }
    return 0;
  }

  private static Duration age(String given) {
    Matcher matcher = AGE.matcher(given);
    if (!matcher.matches()) {
      throw new InputException(
          "--older-than " + given + "; a number with s, m, h, d or w is right");
    }
    long seconds =
        switch (matcher.group(2)) {
          case "s" -> 1;
          case "m" -> 60;
          case "h" -> 3600;
          case "d" -> 86_400;
          default -> 7 * 86_400;
        };
    return Duration.ofSeconds(seconds * Long.parseLong(matcher.group(1)));
  }
}
