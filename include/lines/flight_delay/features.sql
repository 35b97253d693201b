-- The features of the flight delay line: one portable text for DuckDB, Spark and Trino (no engine's own functions).
--
-- In:  flights, weather   accepted raw rows of the wanted days and of the day before each
--      calendar           the days to build: partition_date, previous_date, day_of_week (1 Monday to 7 Sunday)
-- Out: one row a flight of a wanted day, with its features as of its own prediction time, two hours before its
--      scheduled departure.
--
-- Time is honest by construction. What happens to a flight is a *fact* with the instant from which it is known:
--   judged    whether it left late: plain 15 minutes after schedule at the latest (a cancelled flight did)
--   departed  its delay on departure
--   arrived   its delay on arrival
-- Facts and questions (one a flight, at its prediction time) lie on one time line, and every window ends at the
-- question: what was not yet known lies after it. The rates of the day before (`_yesterday`) count the arrivals that
-- were known at the first question of the day. A flight's facts inform its own date and the next, whatever else is
-- loaded, so that a day built alone and a day built in bulk are identical.
--
-- Names end in their window: _1h, _3h ... hours before the prediction time. `late` is a share of flights, delays are
-- mean minutes, weather is in the units of the source (F, mph, inches, millibars, miles).
WITH
questions AS (
    SELECT
        c.partition_date, c.previous_date, c.day_of_week,
        f.carrier, f.flight, f.origin, f.dest, f.scheduled_departure,
        f.scheduled_departure - INTERVAL '2' HOUR AS prediction_time
    FROM flights AS f
    INNER JOIN calendar AS c ON c.partition_date = f.flight_date
),
opening AS (
    SELECT partition_date, previous_date, MIN(prediction_time) AS first_question
    FROM questions
    GROUP BY partition_date, previous_date
),
informing AS (
    SELECT
        o.partition_date, f.carrier, f.origin, f.dest, f.scheduled_departure, f.departure, f.dep_delay,
        f.arrival, f.arr_delay, o.first_question - INTERVAL '8' HOUR AS since
    FROM flights AS f
    INNER JOIN opening AS o ON o.partition_date = f.flight_date
    UNION ALL
    SELECT
        o.partition_date, f.carrier, f.origin, f.dest, f.scheduled_departure, f.departure, f.dep_delay,
        f.arrival, f.arr_delay, o.first_question - INTERVAL '8' HOUR AS since
    FROM flights AS f
    INNER JOIN opening AS o ON o.previous_date = f.flight_date
),
judged AS (
    SELECT
        partition_date, carrier, origin, dest, since,
        CASE
            WHEN departure < scheduled_departure + INTERVAL '15' MINUTE THEN departure
            ELSE scheduled_departure + INTERVAL '15' MINUTE
        END AS instant,
        CASE WHEN departure <= scheduled_departure + INTERVAL '15' MINUTE THEN 0.0 ELSE 1.0 END AS late
    FROM informing
),
timeline AS (
    SELECT
        partition_date, carrier, origin, dest, prediction_time AS instant, flight, scheduled_departure,
        CAST(NULL AS DOUBLE) AS late, CAST(NULL AS DOUBLE) AS dep_delay, CAST(NULL AS DOUBLE) AS arr_delay
    FROM questions
    UNION ALL
    SELECT partition_date, carrier, origin, dest, instant, NULL, NULL, CAST(late AS DOUBLE), NULL, NULL
    FROM judged
    WHERE instant >= since
    UNION ALL
    SELECT partition_date, carrier, origin, dest, departure, NULL, NULL, NULL, dep_delay, NULL
    FROM informing
    WHERE departure >= since
    UNION ALL
    SELECT partition_date, carrier, origin, dest, arrival, NULL, NULL, NULL, NULL, arr_delay
    FROM informing
    WHERE arrival >= since AND arr_delay IS NOT NULL
),
known AS (
    SELECT
        partition_date, carrier, origin, flight, scheduled_departure,
        AVG(late) OVER network_1h AS network_late_1h,
        AVG(late) OVER network_3h AS network_late_3h,
        AVG(dep_delay) OVER network_3h AS network_dep_delay_3h,
        AVG(arr_delay) OVER network_3h AS network_arr_delay_3h,
        AVG(late) OVER origin_1h AS origin_late_1h,
        AVG(late) OVER origin_3h AS origin_late_3h,
        AVG(dep_delay) OVER origin_3h AS origin_dep_delay_3h,
        AVG(arr_delay) OVER origin_3h AS origin_arr_delay_3h,
        COUNT(late) OVER origin_3h - COUNT(dep_delay) OVER origin_3h AS origin_backlog_3h,
        AVG(late) OVER carrier_4h AS carrier_late_4h,
        AVG(late) OVER origin_carrier_4h AS origin_carrier_late_4h,
        AVG(dep_delay) OVER origin_carrier_4h AS origin_carrier_dep_delay_4h,
        AVG(late) OVER dest_8h AS dest_late_8h,
        AVG(dep_delay) OVER dest_8h AS dest_dep_delay_8h,
        AVG(arr_delay) OVER dest_8h AS dest_arr_delay_8h
    FROM timeline
    WINDOW
        network_1h AS (PARTITION BY partition_date ORDER BY instant
            RANGE BETWEEN INTERVAL '1' HOUR PRECEDING AND CURRENT ROW),
        network_3h AS (PARTITION BY partition_date ORDER BY instant
            RANGE BETWEEN INTERVAL '3' HOUR PRECEDING AND CURRENT ROW),
        origin_1h AS (PARTITION BY partition_date, origin ORDER BY instant
            RANGE BETWEEN INTERVAL '1' HOUR PRECEDING AND CURRENT ROW),
        origin_3h AS (PARTITION BY partition_date, origin ORDER BY instant
            RANGE BETWEEN INTERVAL '3' HOUR PRECEDING AND CURRENT ROW),
        carrier_4h AS (PARTITION BY partition_date, carrier ORDER BY instant
            RANGE BETWEEN INTERVAL '4' HOUR PRECEDING AND CURRENT ROW),
        origin_carrier_4h AS (PARTITION BY partition_date, origin, carrier ORDER BY instant
            RANGE BETWEEN INTERVAL '4' HOUR PRECEDING AND CURRENT ROW),
        dest_8h AS (PARTITION BY partition_date, dest ORDER BY instant
            RANGE BETWEEN INTERVAL '8' HOUR PRECEDING AND CURRENT ROW)
),
yesterday AS (
    SELECT
        o.partition_date, f.carrier, f.origin, f.dest,
        CASE WHEN f.arr_delay > 15 THEN 1.0 ELSE 0.0 END AS late
    FROM flights AS f
    INNER JOIN opening AS o ON o.previous_date = f.flight_date
    WHERE f.arr_delay IS NOT NULL AND f.arrival <= o.first_question
),
by_network AS (
    SELECT partition_date, AVG(CAST(late AS DOUBLE)) AS late FROM yesterday GROUP BY partition_date
),
by_origin AS (
    SELECT partition_date, origin, AVG(CAST(late AS DOUBLE)) AS late
    FROM yesterday GROUP BY partition_date, origin
),
by_carrier AS (
    SELECT partition_date, carrier, AVG(CAST(late AS DOUBLE)) AS late
    FROM yesterday GROUP BY partition_date, carrier
),
by_origin_carrier AS (
    SELECT partition_date, origin, carrier, AVG(CAST(late AS DOUBLE)) AS late
    FROM yesterday GROUP BY partition_date, origin, carrier
),
by_dest AS (
    SELECT partition_date, dest, AVG(CAST(late AS DOUBLE)) AS late
    FROM yesterday GROUP BY partition_date, dest
)
SELECT
    q.partition_date,
    q.carrier,
    q.flight,
    q.origin,
    q.dest,
    q.scheduled_departure,
    q.prediction_time,
    CASE WHEN f.arr_delay > 15 THEN 1 WHEN f.arr_delay <= 15 THEN 0 END AS delayed,
    f.scheduled_hour,
    f.scheduled_hour * 60 + EXTRACT(MINUTE FROM f.scheduled_departure) AS scheduled_minute,
    q.day_of_week,
    f.distance,
    EXTRACT(HOUR FROM f.scheduled_arrival - f.scheduled_departure) * 60
        + EXTRACT(MINUTE FROM f.scheduled_arrival - f.scheduled_departure) AS block_minutes,
    COUNT(*) OVER (PARTITION BY q.partition_date, q.origin, f.scheduled_hour) AS flights_this_hour,
    w.temp, w.dewp, w.humid, w.wind_dir, w.wind_speed, w.wind_gust, w.precip, w.pressure, w.visib,
    k.network_late_1h, k.network_late_3h, k.network_dep_delay_3h, k.network_arr_delay_3h,
    k.origin_late_1h, k.origin_late_3h, k.origin_dep_delay_3h, k.origin_arr_delay_3h, k.origin_backlog_3h,
    k.carrier_late_4h, k.origin_carrier_late_4h, k.origin_carrier_dep_delay_4h,
    k.dest_late_8h, k.dest_dep_delay_8h, k.dest_arr_delay_8h,
    yn.late AS network_late_yesterday,
    yo.late AS origin_late_yesterday,
    yc.late AS carrier_late_yesterday,
    yp.late AS origin_carrier_late_yesterday,
    yd.late AS dest_late_yesterday
FROM questions AS q
INNER JOIN flights AS f
    ON f.flight_date = q.partition_date AND f.carrier = q.carrier AND f.flight = q.flight AND f.origin = q.origin
    AND f.scheduled_departure = q.scheduled_departure
INNER JOIN known AS k
    ON k.partition_date = q.partition_date AND k.carrier = q.carrier AND k.flight = q.flight AND k.origin = q.origin
    AND k.scheduled_departure = q.scheduled_departure
LEFT JOIN weather AS w ON w.origin = q.origin AND w.time_hour = DATE_TRUNC('hour', q.prediction_time)
LEFT JOIN by_network AS yn ON yn.partition_date = q.partition_date
LEFT JOIN by_origin AS yo ON yo.partition_date = q.partition_date AND yo.origin = q.origin
LEFT JOIN by_carrier AS yc ON yc.partition_date = q.partition_date AND yc.carrier = q.carrier
LEFT JOIN by_origin_carrier AS yp
    ON yp.partition_date = q.partition_date AND yp.origin = q.origin AND yp.carrier = q.carrier
LEFT JOIN by_dest AS yd ON yd.partition_date = q.partition_date AND yd.dest = q.dest
