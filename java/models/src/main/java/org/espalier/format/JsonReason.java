package org.espalier.format;

import com.fasterxml.jackson.core.JsonProcessingException;
import java.util.regex.Pattern;

/** What a JSON parser says is wrong, fit for a message of ours. */
public final class JsonReason {
  /** A place as Jackson writes it, with what it says of a source that it does not show. */
  private static final Pattern PLACE = Pattern.compile("\\[Source: [^;\\]]*; ([^\\]]*)\\]");

  private JsonReason() {}

  /** The reason without the text that was parsed. */
  public static String of(JsonProcessingException e) {
    return PLACE.matcher(e.getOriginalMessage()).replaceAll("$1");
  }
}
