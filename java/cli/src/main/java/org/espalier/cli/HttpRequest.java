package org.espalier.cli;

import java.util.Map;

/**
 * A request.
 *
 * @param path without a query
 * @param headers by name in lower case; values of one that comes several times have commas between them
 * @param body empty until all of it is there
 */
record HttpRequest(
    String method, String path, Map<String, String> headers, boolean keepsAlive, byte[] body) {}
