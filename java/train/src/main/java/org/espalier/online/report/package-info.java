/**
 * What a learner's numbers look like outside: {@link org.espalier.online.report.OnlineReport} is an HTML file of a run, {@link
 * org.espalier.online.report.LearnerMetrics} are meters for Micrometer. They read a learner and its events by what anybody
 * can ask of it, and change nothing.
 */
package org.espalier.online.report;
