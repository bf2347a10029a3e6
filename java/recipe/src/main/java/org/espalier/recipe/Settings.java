package org.espalier.recipe;

import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.InputException;

/** A group of a recipe after the check: a value of the right type for each key that has one. */
final class Settings {
  private final String path;
  private final Place place;
  private final Map<String, Object> values = new LinkedHashMap<>();
  private final Map<String, Place> places = new LinkedHashMap<>();
  private final Set<String> given = new LinkedHashSet<>();

  /**
   * @param path of the group, for messages; empty for the whole recipe
   */
  Settings(String path, Place place) {
    this.path = path;
    this.place = place;
  }

  void put(String key, Object value, Place at, boolean isGiven) {
    values.put(key, value);
    places.put(key, at);
    if (isGiven) {
      given.add(key);
    }
  }

  /** Whether there is a value, be it by default. */
  boolean has(String key) {
    return values.containsKey(key);
  }

  /** Whether the user wrote it. */
  boolean given(String key) {
    return given.contains(key);
  }

  String text(String key) {
    return (String) values.get(key);
  }

  long whole(String key) {
    return (Long) values.get(key);
  }

  int small(String key) {
    return Math.toIntExact(whole(key));
  }

  double real(String key) {
    return (Double) values.get(key);
  }

  boolean flag(String key) {
    return (Boolean) values.get(key);
  }

  @SuppressWarnings("unchecked") // the schema says that it is such a list
  List<String> texts(String key) {
    return has(key) ? (List<String>) values.get(key) : List.of();
  }

  /** A group; null where it is not given. */
  Settings group(String key) {
    return (Settings) values.get(key);
  }

  @SuppressWarnings("unchecked") // the schema says that it is such a list
  List<Settings> groups(String key) {
    return (List<Settings>) values.get(key);
  }

  /** Where a key was written, or the group where it was not. */
  Place place(String key) {
    return places.getOrDefault(key, place);
  }

  Place place() {
    return place;
  }

  String path() {
    return path;
  }

  /** The error for a value that does not fit others. */
  InputException wrong(String key, String why) {
    return new InputException(
        place(key) + ": " + (path.isEmpty() ? "" : path + ".") + key + ": " + why);
  }
}
