-- The features of the flight delay line: one portable text for DuckDB, Spark and Trino (no engine's own functions).
--
-- In:  flights, weather  accepted raw rows of the wanted days and of the seven days before each
--      wanted            one column `flight_date`: the days to build
-- Out: one row a flight of a wanted day, with its features as of its own prediction time, two hours before its
--      scheduled departure.
--
-- Time is honest by construction. Everything that happens to a flight is a *fact* with the instant from which it is
-- known: `judged` (15 minutes after schedule at the latest it is plain whether a flight left late; a cancelled one
-- did), `departed` (its delay), `arrived` (its delay on arrival). Facts and questions (one a flight, at its
-- prediction time) are laid on one time line, and every window ends at the question: a fact that was not yet known
-- lies after it. Facts of a flight inform its own date and the next, whatever else is loaded, so that a day built alone
-- and a day built in bulk are identical.
WITH
questions AS (
    SELECT
        f.*,
        f.scheduled_departure - INTERVAL '2' HOUR AS prediction_time
    FROM flights AS f
    INNER JOIN wanted AS w ON w.flight_date = f.flight_date
),
informing AS (
    SELECT w.flight_date AS for_date, f.*
    FROM flights AS f
    INNER JOIN wanted AS w ON w.flight_date = f.flight_date
    UNION ALL
    SELECT w.flight_date AS for_date, f.*
    FROM flights AS f
    INNER JOIN wanted AS w ON CAST(w.flight_date - INTERVAL '1' DAY AS DATE) = f.flight_date
),
timeline AS (
    SELECT
        for_date, carrier, origin, dest,
        CAST(NULL AS BIGINT) AS flight, CAST(NULL AS TIMESTAMP WITH TIME ZONE) AS scheduled_departure,
        CASE
            WHEN departure < scheduled_departure + INTERVAL '15' MINUTE THEN departure
            ELSE scheduled_departure + INTERVAL '15' MINUTE
        END AS instant,
        1 AS judged,
        CASE WHEN departure <= scheduled_departure + INTERVAL '15' MINUTE THEN 0 ELSE 1 END AS judged_late,
        0 AS departed, CAST(0 AS DOUBLE) AS dep_delay,
        0 AS arrived, CAST(0 AS DOUBLE) AS arr_delay, 0 AS arrived_late
    FROM informing
    UNION ALL
    SELECT
        for_date, carrier, origin, dest, NULL, NULL, departure,
        0, 0, 1, dep_delay, 0, 0, 0
    FROM informing
    WHERE departure IS NOT NULL
    UNION ALL
    SELECT
        for_date, carrier, origin, dest, NULL, NULL, arrival,
        0, 0, 0, 0, 1, arr_delay, CASE WHEN arr_delay > 15 THEN 1 ELSE 0 END
    FROM informing
    WHERE arrival IS NOT NULL AND arr_delay IS NOT NULL
    UNION ALL
    SELECT
        flight_date, carrier, origin, dest, flight, scheduled_departure, prediction_time,
        0, 0, 0, 0, 0, 0, 0
    FROM questions
),
known AS (
    SELECT
        for_date, carrier, origin, dest, flight, scheduled_departure,
        SUM(judged_late) OVER origin_1h AS o1_late, SUM(judged) OVER origin_1h AS o1_judged,
        SUM(judged_late) OVER origin_3h AS o3_late, SUM(judged) OVER origin_3h AS o3_judged,
        SUM(dep_delay) OVER origin_3h AS o3_delay, SUM(departed) OVER origin_3h AS o3_departed,
        SUM(arr_delay) OVER origin_3h AS o3_arr_delay, SUM(arrived) OVER origin_3h AS o3_arrived,
        SUM(judged_late) OVER net_1h AS n1_late, SUM(judged) OVER net_1h AS n1_judged,
        SUM(judged_late) OVER net_3h AS n3_late, SUM(judged) OVER net_3h AS n3_judged,
        SUM(dep_delay) OVER net_3h AS n3_delay, SUM(departed) OVER net_3h AS n3_departed,
        SUM(arr_delay) OVER net_3h AS n3_arr_delay, SUM(arrived) OVER net_3h AS n3_arrived,
        SUM(arrived_late) OVER net_24h AS n24_late, SUM(arrived) OVER net_24h AS n24_arrived,
        SUM(judged_late) OVER pair_4h AS p4_late, SUM(judged) OVER pair_4h AS p4_judged,
        SUM(dep_delay) OVER pair_4h AS p4_delay, SUM(departed) OVER pair_4h AS p4_departed,
        SUM(arrived_late) OVER pair_24h AS p24_late, SUM(arrived) OVER pair_24h AS p24_arrived,
        SUM(arr_delay) OVER dest_8h AS d8_arr_delay, SUM(arrived) OVER dest_8h AS d8_arrived,
        SUM(dep_delay) OVER dest_8h AS d8_delay, SUM(departed) OVER dest_8h AS d8_departed,
        SUM(judged_late) OVER dest_8h AS d8_late, SUM(judged) OVER dest_8h AS d8_judged,
        SUM(arrived_late) OVER dest_24h AS d24_late, SUM(arrived) OVER dest_24h AS d24_arrived,
        SUM(judged_late) OVER carrier_4h AS c4_late, SUM(judged) OVER carrier_4h AS c4_judged,
        SUM(arrived_late) OVER carrier_24h AS c24_late, SUM(arrived) OVER carrier_24h AS c24_arrived
    FROM timeline
    WINDOW
        origin_1h AS (PARTITION BY for_date, origin ORDER BY instant
            RANGE BETWEEN INTERVAL '1' HOUR PRECEDING AND CURRENT ROW),
        origin_3h AS (PARTITION BY for_date, origin ORDER BY instant
            RANGE BETWEEN INTERVAL '3' HOUR PRECEDING AND CURRENT ROW),
        net_1h AS (PARTITION BY for_date ORDER BY instant
            RANGE BETWEEN INTERVAL '1' HOUR PRECEDING AND CURRENT ROW),
        net_3h AS (PARTITION BY for_date ORDER BY instant
            RANGE BETWEEN INTERVAL '3' HOUR PRECEDING AND CURRENT ROW),
        net_24h AS (PARTITION BY for_date ORDER BY instant
            RANGE BETWEEN INTERVAL '24' HOUR PRECEDING AND CURRENT ROW),
        pair_4h AS (PARTITION BY for_date, origin, carrier ORDER BY instant
            RANGE BETWEEN INTERVAL '4' HOUR PRECEDING AND CURRENT ROW),
        pair_24h AS (PARTITION BY for_date, origin, carrier ORDER BY instant
            RANGE BETWEEN INTERVAL '24' HOUR PRECEDING AND CURRENT ROW),
        dest_8h AS (PARTITION BY for_date, dest ORDER BY instant
            RANGE BETWEEN INTERVAL '8' HOUR PRECEDING AND CURRENT ROW),
        dest_24h AS (PARTITION BY for_date, dest ORDER BY instant
            RANGE BETWEEN INTERVAL '24' HOUR PRECEDING AND CURRENT ROW),
        carrier_4h AS (PARTITION BY for_date, carrier ORDER BY instant
            RANGE BETWEEN INTERVAL '4' HOUR PRECEDING AND CURRENT ROW),
        carrier_24h AS (PARTITION BY for_date, carrier ORDER BY instant
            RANGE BETWEEN INTERVAL '24' HOUR PRECEDING AND CURRENT ROW)
)
SELECT * FROM known WHERE flight IS NOT NULL
