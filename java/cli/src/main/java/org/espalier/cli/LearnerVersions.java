package org.espalier.cli;

import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.OptionalLong;
import java.util.Set;
import java.util.function.Consumer;
import java.util.function.Supplier;
import org.espalier.InputException;
import org.espalier.encoder.Encoder;
import org.espalier.online.Learnable;
import org.espalier.online.OnlineLearner;
import org.espalier.online.OnlineRecipe;
import org.espalier.online.store.LearnerFiles;
import org.espalier.store.Lineage;
import org.espalier.store.ModelStore;
import org.espalier.store.SigningKey;
import org.espalier.store.StoreWriter;
import org.espalier.store.Version;

/**
 * The versions of a store that a learner is and makes. What another process makes current, by a
 * publication or a rollback, is taken over, and nothing is ever published over it: what was learned
 * beside it becomes a version that is not current. For one thread, but for {@link #current} and {@link
 * #origin}.
 */
final class LearnerVersions {
  private final ModelStore store;
  private final OnlineLearner learner;
  private final OnlineRecipe recipe;
  private final SigningKey signing;
  private final Encoder encoder;
  private final Consumer<String> notes;

  /**
   * Which version of the store the learner's versions go back to.
   *
   * @param since the learner's first one that goes back to {@code version}
   * @param before what those before it go back to
   */
  private record Origin(long since, long version, long before) {}

  private volatile Origin origin;

  /** The version that the learner went on from, or null. */
  private Long parent;

  /** The store's current version that is known and dealt with; 0 for none. */
  private volatile long current;

  /** What versions up to this one have spent of privacy is known to the learner. */
  private long accounted;

  /** A current version that cannot be taken over: it is not tried again and again. */
  private long refused;

  /**
   * @param encoder makes the learner's features, and belongs to each version; null where there is none
   * @param parent the version that the learner was made from, or null
   * @param notes receives a sentence for people where another version is taken over, or cannot be
   */
  LearnerVersions(
      ModelStore store,
      OnlineLearner learner,
      OnlineRecipe recipe,
      SigningKey signing,
      Encoder encoder,
      Long parent,
      Consumer<String> notes) {
    this.store = store;
    this.learner = learner;
    this.recipe = recipe;
    this.signing = signing;
    this.encoder = encoder;
    this.parent = parent;
    this.current = parent == null ? store.current().orElse(0) : parent;
    this.origin = new Origin(0, current, current);
    this.notes = notes;
  }

  /** The version of the store that is known to be current. */
  long current() {
    return current;
  }

  /**
   * The version of the store that one of the learner's, which answered just now, goes back to: it has the
   * same weights, or those that learning went on from.
   */
  long origin(long version) {
    Origin known = origin;
    return version < known.since ? known.before : known.version;
  }

  private void goesBackTo(long id) {
    origin = new Origin(learner.version(), id, origin.version);
  }

  ModelStore store() {
    return store;
  }

  /** Whether another process made a version current that cannot be taken over. */
  boolean isRefused() {
    return refused != 0;
  }

  /**
   * Takes over what another process made current: with its learner's state, or, where no learner made
   * it, its weights with a fresh optimizer.
   *
   * @return whether the learner is another version now
   */
  boolean follow() {
    OptionalLong now = store.current();
    if (now.isEmpty() || now.getAsLong() == refused) {
      return false;
    }
    refused = 0;
    long id = now.getAsLong();
    if (id == current) {
      return false;
    }
    try (ModelStore.Held held = store.hold(id)) {
      checkEncoder(held.version());
      boolean learned = LearnerFiles.isLearned(held);
      if (learned) {
        synchronized (learner) { // no step comes between
          long answered = learner.version();
          LearnerFiles.load(learner, held);
          learner.numberFrom(answered + 1);
          goesBackTo(id);
        }
      } else {
        try (Learnable published = LearnerFiles.readModel(held, recipe)) {
          synchronized (learner) {
            learner.adopt(published);
            goesBackTo(id);
          }
        }
      }
      current = id;
      parent = id;
      notes.accept(
          "version "
              + id
              + " of the store was made current and is served now"
              + (learned
                  ? ", with all that its learner knew"
                  : "; no learner made it: learning goes on from its weights with a fresh"
                      + " optimizer"));
      return true;
    } catch (InputException e) {
      refused = id;
      notes.accept(
          "version "
              + id
              + " of the store was made current and cannot be taken over, version "
              + current
              + " and what was learned since goes on: "
              + e.getMessage());
      return false;
    }
  }

  private void checkEncoder(Version version) {
    boolean same = encoder == null ? !Encoder.isIn(version) : encoder.isBefore(version);
    if (!same) {
      throw new InputException(
          encoder == null
              ? "it has an encoder, and what goes on has none; a new process serves it"
              : "its encoder is another one, or it has none; a new process serves it");
    }
  }

  /**
   * Tells the learner what other versions of the store have spent of privacy, so that its epsilon is of all
   * of them. Nothing is done without privacy.
   */
  void account() {
    if (learner.settings().privacy() == null) {
      return;
    }
    List<Version> fresh = new ArrayList<>();
    // Of those that a version was made from it knows itself what they have spent.
    Set<Long> parents = new HashSet<>();
    for (long id : store.ids()) {
      if (id > accounted) {
        try {
          Version version = store.version(id);
          if (version.lineage().epsilon() != null) {
            fresh.add(version);
            parents.add(version.lineage().parent());
          }
        } catch (InputException e) {
          notes.accept("epsilon is without what version " + id + " spent: " + e.getMessage());
        }
      }
    }
    for (Version version : fresh) {
      if (!parents.contains(version.id())) {
        try (ModelStore.Held held = store.hold(version.id())) {
          learner.account(LearnerFiles.passes(held));
        } catch (InputException e) {
          notes.accept(
              "epsilon is without what version " + version.id() + " spent: " + e.getMessage());
        }
      }
      accounted = Math.max(accounted, version.id());
    }
  }

  /**
   * Publishes the learner. The version becomes current, unless another process has made one current
   * meanwhile.
   *
   * @param lineage without parent
   */
  Version publish(Lineage lineage, Supplier<StoreWriter> writers) {
    try (StoreWriter writer = writers.get()) {
      account();
      boolean overtaken = store.current().orElse(current) != current;
      Version version =
          LearnerFiles.publish(
              writer,
              learner,
              recipe.text(),
              lineage.withParent(parent),
              signing,
              !overtaken,
              files -> {
                if (encoder != null) {
                  encoder.write(files);
                }
              });
      parent = version.id();
      accounted = version.id();
      goesBackTo(parent);
      if (overtaken) {
        notes.accept(
            "version "
                + version.id()
                + " was published and is not current: another process made version "
                + store.current().orElse(0)
                + " current");
      } else {
        current = version.id();
      }
      if (encoder != null) {
        encoder.publishedIn(store, version);
      }
      return version;
    }
  }
}
