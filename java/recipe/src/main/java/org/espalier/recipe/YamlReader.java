package org.espalier.recipe;

import java.io.StringReader;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import org.espalier.InputException;
import org.yaml.snakeyaml.LoaderOptions;
import org.yaml.snakeyaml.Yaml;
import org.yaml.snakeyaml.error.MarkedYAMLException;
import org.yaml.snakeyaml.error.YAMLException;
import org.yaml.snakeyaml.events.CollectionStartEvent;
import org.yaml.snakeyaml.events.Event;
import org.yaml.snakeyaml.events.NodeEvent;
import org.yaml.snakeyaml.events.ScalarEvent;
import org.yaml.snakeyaml.reader.ReaderException;

/**
 * Reads YAML as text, lists and groups of keys. Nothing in a file makes an object or a reference:
 * tags, anchors and aliases are refused, and so are duplicate keys, deep nesting and large files.
 */
final class YamlReader {
  /** Far more than any recipe has. */
  static final int MAX_CHARACTERS = 1 << 20;

  private static final int MAX_DEPTH = 12;

  private final String source;
  private final boolean hasLines;
  private final Iterator<Event> events;

  private YamlReader(String source, boolean hasLines, String text) {
    this.source = source;
    this.hasLines = hasLines;
    this.events = new Yaml(new LoaderOptions()).parse(new StringReader(text)).iterator();
  }

  /**
   * Reads one document.
   *
   * @param source how messages call it
   * @param hasLines whether messages say the line
   * @throws InputException where it is not such YAML, naming the line
   */
  static YamlNode read(String source, boolean hasLines, String text) {
    if (text.length() > MAX_CHARACTERS) {
      throw new InputException(
          source
              + ": it has "
              + text.length()
              + " characters; a recipe has at most "
              + MAX_CHARACTERS);
    }
    YamlReader reader = new YamlReader(source, hasLines, text);
    try {
      return reader.document();
    } catch (MarkedYAMLException e) {
      int line = e.getProblemMark() == null ? 0 : e.getProblemMark().getLine() + 1;
      String context = e.getContext() == null ? "" : e.getContext() + ": ";
      throw new InputException(
          reader.place(line) + ": no valid YAML: " + context + e.getProblem(), e);
    } catch (ReaderException e) {
      long line = 1 + text.codePoints().limit(e.getPosition()).filter(c -> c == '\n').count();
      throw new InputException(
          reader.place((int) line)
              + ": no valid YAML: the character "
              + String.format("U+%04X", e.getCodePoint())
              + " is not allowed in it",
          e);
    } catch (YAMLException e) {
      throw new InputException(source + ": no valid YAML: " + e.getMessage(), e);
    }
  }

  private Place place(int line) {
    return new Place(source, hasLines ? line : 0);
  }

  private Place place(Event event) {
    return place(event.getStartMark() == null ? 0 : event.getStartMark().getLine() + 1);
  }

  private YamlNode document() {
    events.next(); // the start of the stream
    Event first = events.next();
    if (first.getEventId() == Event.ID.StreamEnd) {
      return new YamlNode.Scalar("", false, place(1));
    }
    YamlNode root = node(events.next(), 0);
    events.next(); // the end of the document
    Event after = events.next();
    if (after.getEventId() != Event.ID.StreamEnd) {
      throw new InputException(place(after) + ": a second document begins; a recipe is one");
    }
    return root;
  }

  private YamlNode node(Event event, int depth) {
    Place place = place(event);
    if (depth > MAX_DEPTH) {
      throw new InputException(place + ": more than " + MAX_DEPTH + " levels; no key is that deep");
    }
    if (event.getEventId() == Event.ID.Alias
        || event instanceof NodeEvent n && n.getAnchor() != null) {
      throw new InputException(
          place
              + ": anchors and aliases (& and *) are not used in recipes; write the value again,"
              + " or put a text in quotes");
    }
    return switch (event.getEventId()) {
      case Scalar -> {
        ScalarEvent scalar = (ScalarEvent) event;
        refuseTag(scalar.getTag(), place);
        yield new YamlNode.Scalar(scalar.getValue(), !scalar.isPlain(), place);
      }
      case SequenceStart -> {
        refuseTag(((CollectionStartEvent) event).getTag(), place);
        List<YamlNode> items = new ArrayList<>();
        for (Event e = events.next(); e.getEventId() != Event.ID.SequenceEnd; e = events.next()) {
          items.add(node(e, depth + 1));
        }
        yield new YamlNode.Sequence(items, place);
      }
      case MappingStart -> {
        refuseTag(((CollectionStartEvent) event).getTag(), place);
        YamlNode.Mapping mapping = YamlNode.Mapping.empty(place);
        for (Event e = events.next(); e.getEventId() != Event.ID.MappingEnd; e = events.next()) {
          YamlNode key = node(e, depth + 1);
          if (!(key instanceof YamlNode.Scalar name)) {
            throw new InputException(
                key.place() + ": " + key.describe() + " where a key is expected");
          }
          if (mapping.entries().containsKey(name.text())) {
            throw new InputException(
                key.place()
                    + ": the key '"
                    + name.text()
                    + "' was given in line "
                    + mapping.keys().get(name.text()).line()
                    + " already");
          }
          mapping.put(name.text(), node(events.next(), depth + 1), key.place());
        }
        yield mapping;
      }
      default -> throw new InputException(place + ": no valid YAML");
    };
  }

  private static void refuseTag(String tag, Place place) {
    if (tag != null) {
      throw new InputException(place + ": the tag " + tag + "; recipes have none");
    }
  }
}
