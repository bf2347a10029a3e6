package org.espalier.compress;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.List;
import org.espalier.InputException;
import org.espalier.format.NearNames;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

class GlobTest {
  @ParameterizedTest
  @CsvSource({
    "*, a.b/c, true",
    "a*c, a.x/c, true",
    "a?c, abc, true",
    "a?c, ac, false",
    "a.c, abc, false", // a dot is a dot
    "layer.[0-3].w, layer.2.w, true",
    "layer.[0-3].w, layer.4.w, false",
    "layer.[!0-3].w, layer.4.w, true",
    "x[]a]y, x]y, true",
    "x[a-]y, x-y, true",
    "x[\\w]y, xay, false", // no classes of regular expressions
    "x[&&a]y, x&y, true",
    "x\\*y, x*y, true",
    "x\\*y, xzy, false",
    "Layer, layer, false",
    "lay, layer, false", // the whole name
  })
  void matchesAsAShellDoes(String glob, String name, boolean matches) {
    assertEquals(matches, Glob.parse(glob).test(name));
  }

  @ParameterizedTest
  @ValueSource(strings = {"x[ab", "x[z-a]", "x\\"})
  void refusesWhatIsNoGlob(String glob) {
    InputException e = assertThrows(InputException.class, () -> Glob.parse(glob));
    assertTrue(e.getMessage().contains(glob), e.getMessage());
  }

  @Test
  void namesWhatMayHaveBeenMeant() {
    List<String> names =
        List.of("encoder.layer.0.query.weight", "encoder.layer.0.query.bias", "pooler.weight", "x");
    String near = NearNames.list("encoder.layer.9.quer*.weight", names);
    assertTrue(near.startsWith("'encoder.layer.0.query.weight', "), near);
    assertTrue(near.endsWith(" and 1 other"), near);
  }
}
